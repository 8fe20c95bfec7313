"""Runs a model and hands out, layer by layer, its neurons with the queries and keys beside them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs import Inputs
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.neuron import split_name
from vlm_lens.neurons.sites import Which
from vlm_lens.neurons.sites import sites as hook_points
from vlm_lens.parts import text_for

Heads = Float[Tensor, "batch pos head d_head"]

OnLayer = Callable[[str, Float[Tensor, "batch pos neuron"], Heads | None, Heads | None], None]
"""Takes a site's name, its activations, and the queries and keys of the layer's attention.

There are no queries and keys in layers without self-attention, as Mllama has some.
"""


def reader(model: HookedVLM) -> str:
    """The component whose positions are the prompt's: the language model, or T5's encoder."""
    text = text_for(model, "the positions of a prompt")
    return "encoder" if text.has_encoder else "language_model"


def layer_sites(model: HookedVLM, sites: Which | NamesFilter = "act") -> list[str]:
    """One hook point for each layer that reads the prompt, behind the layer's attention.

    Args:
        model: The model.
        sites: As for `vlm_lens.neurons.sites.sites`.

    Raises:
        ValueError: A site has no place in a layer's MLP, or a layer has two.
        HookNameError: A site matches nothing.

    Example:
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> layer_sites(model, "post")[:2]
        ['blocks.0.mlp.hook_post', 'blocks.1.mlp.hook_post']
    """
    component = reader(model)
    named = isinstance(sites, str) and sites in ("output", "act", "post")
    names = hook_points(model, sites, component=component if named else None)
    layers: dict[int | None, str] = {}
    for name in names:
        found, layer, site = split_name(name)
        if found != component or not (site.startswith("mlp.") or site == "hook_mlp_out"):
            raise ValueError(
                f"expected sites in the MLPs of the {component}, whose positions are the prompt's "
                f"tokens, got {name!r}: use 'act', 'post' or globs such as 'blocks.*.mlp.hook_act'"
            )
        if layer in layers:
            raise ValueError(
                f"expected one site in each layer, got {layers[layer]!r} and {name!r}: score them "
                "one after the other"
            )
        layers[layer] = name
    return names


def run_layers(
    model: HookedVLM, inputs: Inputs, names: Sequence[str], on_layer: OnLayer, *, rotated: bool
) -> None:
    """Runs the model once, and calls `on_layer` for each site as soon as its tensors are there.

    Args:
        model: The model.
        inputs: Prompts.
        names: Sites, at most one a layer.
        on_layer: Is called in the order of the layers; what it does not keep is freed.
        rotated: Whether queries and keys are those after rotary positions, where there are such.
    """
    waiting: dict[str, dict[str, Tensor]] = {}
    points: dict[str, tuple[str, str]] = {}
    for name in names:
        for which in "qk":
            if (point := _attention_point(model, name, which, rotated)) is not None:
                points[point] = (name, which)

    def keep(tensor: Tensor, hook: HookPoint) -> None:
        name, which = points[str(hook.name)]
        waiting.setdefault(name, {})[which] = tensor.detach()

    def reduce(tensor: Tensor, hook: HookPoint) -> None:
        name = str(hook.name)
        heads = waiting.pop(name, {})
        on_layer(name, tensor.detach(), heads.get("q"), heads.get("k"))

    hooks = [(list(some), hook) for some, hook in ((points, keep), (names, reduce)) if some]
    with warnings.catch_warnings():
        # Mllama leaves its cross-attention layers out where there is no image.
        warnings.simplefilter("ignore", HookNeverFiredWarning)
        with model.hooks(hooks):
            model(inputs, return_type=None, use_cache=False, **few_logits(model))


def _attention_point(model: HookedVLM, name: str, which: str, rotated: bool) -> str | None:
    """The hook point of the queries or keys of a site's layer; None where it has none."""
    block = name.removesuffix(split_name(name)[2])
    wanted = [f"{block}attn.hook_rot_{which}"] if rotated else []
    wanted.append(f"{block}attn.hook_{which}")
    return next((point for point in wanted if point in model.hook_dict), None)


def few_logits(model: HookedVLM) -> dict[str, int]:
    """Nobody reads the logits: where the model can do without most of them, it does."""
    few = "logits_to_keep" in inspect.signature(model.hf_model.forward).parameters
    return {"logits_to_keep": 1} if few else {}

"""The layers that read a prompt, and one hook point in each."""

from __future__ import annotations

from vlm_lens.hooks.names import NamesFilter
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.neuron import split_name
from vlm_lens.neurons.sites import Which
from vlm_lens.neurons.sites import sites as hook_points
from vlm_lens.parts import text_for


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

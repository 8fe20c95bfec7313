"""Where neurons are: the hook points that rankings are made over, and the matrices behind them.

Papers mean different things by "neuron". Critical-neuron papers mean an *output channel* of a
linear layer (PCICN in its code; CAN's finding that ``down_proj`` is the most vulnerable layer says
the same); others mean what comes out of the activation function, or its product with the gate.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

from vlm_lens.hooks import resolve_names
from vlm_lens.hooks.heads import HEAD_SITES, PATTERN_SITES
from vlm_lens.hooks.names import NamesFilter, is_glob
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.neuron import split_name

Which = Literal["output", "act", "post"]

_OUTPUTS = ("mlp.hook_pre", "mlp.hook_pre_linear", "hook_mlp_out")
_NO_NEURONS = (*HEAD_SITES, *PATTERN_SITES, "hook_scale")


def sites(
    model: HookedVLM, which: Which | NamesFilter = "output", *, component: str | None = None
) -> list[str]:
    """The hook points whose neurons a ranking is made over, in the model's order.

    The output channel of the last linear layer of an MLP ("down", "fc2") is read at
    ``hook_mlp_out``, which is what the MLP adds to the stream. That is the layer's own output,
    except where a norm follows it (Gemma 2 and 3): there it is what that norm makes of the channel,
    0 exactly where the channel is 0. Where the block then multiplies with a scale or a gate
    (InternVL's lambda, Mllama's cross-attention), it is the channel before that.

    Two layers have no hook point at their output, and so are not in "output": the last one of the
    text branch beside a Q-Former's queries, and the one in front of Kosmos-2's projector queries.

    Args:
        model: The model.
        which: "output": the output channels of every linear layer of every MLP (gate, up and down,
            or fc1 and fc2) and of the projector, in all components; "act": what the activation
            function gives, before a gated MLP multiplies it (Deciphering, MINER); "post": what
            enters the last linear layer of an MLP. Or else names, globs or a predicate, of which
            points without a neuron dimension (heads, patterns, scales) are left out.
        component: Only this one: "language_model", "vision_encoder", "projector" ...

    Raises:
        HookNameError: A name or glob matches nothing.
        ValueError: A point asked for by name has no neuron dimension, nothing is left, or there is
            no such component.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> sites(model, component="projector")
        ['projector.mlp.hook_pre', 'projector.hook_out']
        >>> sites(model, "act", component="language_model")[0]
        'blocks.0.mlp.hook_act'
    """
    names = _chosen(model, which)
    kept = names if component is None else [n for n in names if _is_in(n, component)]
    if kept:
        return kept
    if any(_is_in(name, component) for name in model.hook_dict):
        raise ValueError(f"no hook point of {component!r} is among the sites {which!r}.")
    known = dict.fromkeys(split_name(name)[0] for name in model.hook_dict)
    raise ValueError(f"there is no component {component!r}: this model has {', '.join(known)}.")


def _is_in(name: str, component: str | None) -> bool:
    found = split_name(name)[0]
    return component is None or found == component or found.startswith(f"{component}.")


def _chosen(model: HookedVLM, which: Which | NamesFilter) -> list[str]:
    every = list(model.hook_dict)
    if which == "output":
        return [name for name in every if _is_output(name)]
    if which == "post":
        return [name for name in every if name.endswith("mlp.hook_post")]
    if which == "act":
        acts = {name for name in every if name.endswith("mlp.hook_act")}
        gated = {name.replace("hook_act", "hook_post") for name in acts}
        posts = {name for name in every if name.endswith("mlp.hook_post")}
        return [name for name in every if name in acts | (posts - gated)]
    return _with_neurons(resolve_names(which, model.hook_dict), which)


def _is_output(name: str) -> bool:
    is_projector = name.startswith("projector.") and name.endswith("hook_out")
    return is_projector or name.endswith(_OUTPUTS)


def _with_neurons(names: list[str], which: NamesFilter) -> list[str]:
    """Those with one neuron dimension; a point that was asked for by its name must have one."""
    without = [name for name in names if name.endswith(_NO_NEURONS)]
    listed = [which] if isinstance(which, str) else which if isinstance(which, Iterable) else []
    asked = [name for name in listed if name in without and not is_glob(name)]
    if asked or len(without) == len(names):
        raise ValueError(
            f"{(asked or without)[0]!r} has no neuron dimension: its activations are heads, "
            "attention weights or a scale. Use a site such as 'mlp.hook_post' or 'hook_attn_out'."
        )
    return [name for name in names if name not in without]


def matrix_of(name: str, names: Collection[str]) -> str:
    """The linear layer whose output channels a hook point shows.

    Args:
        name: A hook name.
        names: Hook names of the model, such as ``model.hook_dict``; they tell a gated MLP from
            one that is not.

    Returns:
        "gate", "up" or "down" of a gated MLP, "fc1" or "fc2" of another one, "linear_1" or
        "linear_2" of a projector with two layers, "linear" of one with a single layer; of any other
        hook point its site (``"mlp.hook_post"``).

    Example:
        >>> from vlm_lens import HookedVLM
        >>> names = HookedVLM.from_pretrained("shapes-llava").hook_dict
        >>> matrix_of("blocks.0.mlp.hook_pre", names), matrix_of("projector.hook_out", names)
        ('gate', 'linear_2')
        >>> matrix_of("vision_encoder.blocks.0.mlp.hook_pre", names)
        'fc1'
    """
    component, layer, site = split_name(name)
    place = name[: len(name) - len(name.rpartition(".")[2])].removesuffix("text_mlp.")
    place = place.removesuffix("mlp.")
    if component == "projector":
        return _projector_matrix(name, place, names) or site
    gated = f"{place}mlp.hook_pre_linear" in names and "text_mlp" not in name
    matrices = {
        "mlp.hook_pre": "gate" if gated else "fc1",
        "mlp.hook_pre_linear": "up",
        "hook_mlp_out": "down" if gated else "fc2",
        "text_mlp.hook_pre": "fc1",
    }
    return matrices.get(site, site) if layer is not None else site


def _projector_matrix(name: str, place: str, names: Collection[str]) -> str | None:
    two = f"{place}mlp.hook_pre" in names
    if name.endswith("mlp.hook_pre"):
        return "linear_1"
    if not name.endswith("hook_out") or f"{place}attn.hook_z" in names:  # of attention, in Kosmos-2
        return None
    return "linear_2" if two else "linear"

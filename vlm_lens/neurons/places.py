"""How the neurons of a set are spread over a model: hook point by hook point."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.neuron import natural_order, split_name
from vlm_lens.neurons.sites import matrix_of

_FLOW = ("vision_encoder", "audio_encoder", "qformer", "projector", "encoder")
"""Components from images to text; what is left, the language model, comes last."""


def matrices_of(names: Collection[str], every: Collection[str] | None = None) -> dict[str, str]:
    """The matrix ("down", "fc1", "linear_2", ...) of each hook point; see `matrix_of`.

    Args:
        names: Hook names.
        every: All hook names of the model, as ``model.hook_dict``. Without them it is not known
            whether an MLP is gated unless its component has ``mlp.hook_pre_linear`` among `names`;
            its hook points are left out then.

    Example:
        >>> matrices_of(["blocks.0.mlp.hook_pre_linear", "blocks.1.hook_mlp_out"])
        {'blocks.0.mlp.hook_pre_linear': 'up', 'blocks.1.hook_mlp_out': 'down'}
        >>> matrices_of(["blocks.1.hook_mlp_out"])
        {}
        >>> matrices_of(["blocks.1.hook_mlp_out"], ["blocks.1.hook_mlp_out"])
        {'blocks.1.hook_mlp_out': 'fc2'}
    """
    if every is not None:
        return {name: matrix_of(name, every) for name in names}
    gated = {split_name(name)[0] for name in names if name.endswith("mlp.hook_pre_linear")}
    found = {}
    for name in names:
        component, layer, site = split_name(name)
        up = f"{name.removesuffix(site)}mlp.hook_pre_linear"
        if layer is None or component in gated:
            found[name] = matrix_of(name, {*names, up})
    return found


def _flow(name: str) -> tuple[int, list[tuple[int, str]]]:
    component = split_name(name)[0].partition(".")[0]
    return _FLOW.index(component) if component in _FLOW else len(_FLOW), natural_order(name)


def places(
    neurons: NeuronSet, *, sizes: Mapping[str, int], matrices: Mapping[str, str]
) -> pd.DataFrame:
    """How many neurons of a set are at each hook point.

    Args:
        neurons: The set.
        sizes: The number of neurons at each hook point, the set's own and others.
        matrices: The matrix of each hook point, as far as known; else what `matrices_of` finds,
            or else the site stands for it.

    Returns:
        A row for each hook point, from images to text and layer 2 before layer 10: name,
        component, layer (<NA> outside of blocks), matrix, site, how many neurons are in the set
        (``critical``) and how many there are (``neurons``, <NA> if not known).

    Example:
        >>> neurons = NeuronSet.from_indices({"blocks.0.hook_mlp_out": [3]})
        >>> matrices = dict.fromkeys(["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"], "down")
        >>> table = places(neurons, sizes={"blocks.1.hook_mlp_out": 4}, matrices=matrices)
        >>> table[["layer", "matrix", "critical", "neurons"]]
           layer matrix  critical  neurons
        0      0   down         1     <NA>
        1      1   down         0        4
    """
    names = sorted({*sizes, *neurons.names}, key=_flow)
    found, known = neurons.count_by("name"), {**matrices_of(names), **matrices}
    rows = []
    for name in names:
        component, layer, site = split_name(name)
        counts = found.get(name, 0), sizes.get(name)
        rows.append((name, component, layer, known.get(name, site), site, *counts))
    columns = ["name", "component", "layer", "matrix", "site", "critical", "neurons"]
    return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "neurons": "Int64"})

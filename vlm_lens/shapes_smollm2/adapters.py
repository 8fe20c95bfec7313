"""Low-rank adapters on a language model's attention: trained beside it, then added to its weights.

With an adapter a projection computes `W x + B (A x)`; afterwards `W + B A` takes the place of `W`,
and the model is a plain one again (Hu et al. 2021, LoRA, section 4.1, with a scale of 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The projections of an attention, each of which gets an adapter."""


class LowRank(nn.Module):
    """A frozen linear map with an adapter, which adds nothing at first.

    Args:
        linear: The map.
        rank: The adapter's rank.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Float[Tensor, "*pos d_in"]) -> Float[Tensor, "*pos d_out"]:
        return self.linear(x) + nn.functional.linear(nn.functional.linear(x, self.a), self.b)


def add_adapters(layers: nn.ModuleList, *, rank: int) -> dict[str, LowRank]:
    """Puts an adapter on each projection of each layer.

    Args:
        layers: The language model's layers, each with a `self_attn`.
        rank: The adapters' rank.

    Returns:
        The adapters by "layer.projection", such as "0.q_proj".
    """
    added = {}
    for index, layer in enumerate(layers):
        attention: Any = layer.self_attn
        for name in PROJECTIONS:
            adapter = LowRank(getattr(attention, name), rank)
            setattr(attention, name, adapter)
            added[f"{index}.{name}"] = adapter
    return added


@torch.no_grad()
def merge_adapters(layers: nn.ModuleList, weights: Mapping[str, Tensor]) -> None:
    """Adds trained adapters to the weights of the projections that they belong to.

    Args:
        layers: The language model's layers, whose projections are plain ones.
        weights: "layer.projection.a" and "layer.projection.b" of each adapter.
    """
    for key in sorted({name.rpartition(".")[0] for name in weights}):
        index, projection = key.split(".")
        linear: Any = getattr(layers[int(index)].self_attn, projection)
        a, b = (weights[f"{key}.{factor}"].float() for factor in "ab")
        linear.weight.copy_((linear.weight.float() + b @ a).to(linear.weight.dtype))

"""How much attention each position receives, in the layer that a neuron is in."""

from __future__ import annotations

import re
from collections.abc import Collection

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_LAYER = re.compile(r"(.*\bblocks\.\d+\.)(.+)")
_AFTER = ("hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")


def pattern_of(name: str, every: Collection[str]) -> str:
    """The hook point of the attention pattern of the layer that a hook point is in.

    Args:
        name: A hook name.
        every: All hook names of the model.

    Raises:
        ValueError: It is in no layer with attention, or comes before the layer's attention.

    Example:
        >>> pattern_of("blocks.3.mlp.hook_act", ["blocks.3.attn.hook_pattern"])
        'blocks.3.attn.hook_pattern'
    """
    match = _LAYER.fullmatch(name)
    pattern = f"{match[1]}attn.hook_pattern" if match else ""
    if match and pattern in every and (match[2] in _AFTER or "mlp." in match[2]):
        return pattern
    raise ValueError(
        f"{name!r} does not come after an attention of its own layer, so there is none to weigh it "
        "with: choose sites in the MLPs, or attention=False"
    )


def received(
    pattern: Float[Tensor, "row head query key"], real: Bool[Tensor, "row query"]
) -> Float[Tensor, "row key"]:
    """The attention that each position receives: the mean over heads, summed over queries.

    That is ``w[j] = sum over i of (1 / heads) * sum over heads of A[i, j]`` with the model's own
    attention weights ``A`` (causal where the model is), over all real queries ``i`` of the row, of
    whatever token type. Where attention is causal, later positions are seen by fewer queries, and
    receive less.

    Args:
        pattern: Attention weights.
        real: Which queries are not padding.

    Example:
        >>> pattern = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])
        >>> received(pattern, torch.tensor([[True, True]]))
        tensor([[1.2500, 0.7500]])
    """
    wide = torch.promote_types(pattern.dtype, torch.float32)
    if not real.all():  # rows of padding hold anything, NaN too
        pattern = pattern.masked_fill(~real[:, None, :, None], 0.0)
    return pattern.to(wide).sum((1, 2)) / pattern.shape[1]

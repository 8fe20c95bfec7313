"""Activations with an axis of heads, and their neurons: the channels of all heads in one row."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor

HEAD_SITES = (
    *("hook_q", "hook_k", "hook_v", "hook_z", "hook_rot_q", "hook_rot_k"),
    *("hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_attn_in"),
)
"""How the names of activations ``[..., head, d_head]`` end, or ``[..., head, d_model]``."""

PATTERN_SITES = ("hook_attn_scores", "hook_pattern")
"""How the names of activations ``[batch, head, query, key]`` end, whose last axis is positions."""


def flat_heads(
    name: str, activations: Shaped[Tensor, "*positions d"]
) -> Shaped[Tensor, "*positions_flat d_flat"]:
    """Activations at a hook point with their neurons on one axis.

    Args:
        name: The hook point's name.
        activations: ``[..., head, d_head]`` at a site of heads, ``[..., d]`` elsewhere.

    Returns:
        At a site of heads ``[..., head * d_head]``, in the order of the linear layer's channels:
        channel ``i`` of head ``h`` is number ``h * d_head + i``. Elsewhere the same tensor.

    Example:
        >>> import torch
        >>> flat_heads("blocks.0.attn.hook_q", torch.zeros(1, 5, 4, 8)).shape
        torch.Size([1, 5, 32])
        >>> flat_heads("blocks.0.hook_attn_out", torch.zeros(1, 5, 32)).shape
        torch.Size([1, 5, 32])
    """
    if name.endswith(HEAD_SITES) and activations.ndim > 1:
        return activations.flatten(-2)
    return activations

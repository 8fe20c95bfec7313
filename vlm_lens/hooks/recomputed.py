"""Tensors inside a computation that the model does in one call, such as a fused attention.

To show them, the call is computed a second time, in the open, with taps in it. As long as no hook
changes anything, the model keeps the value of its own call, so reading costs time but not a bit of
the result; gradients flow through the open computation, so its tensors are part of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ValueOf(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, through: Tensor) -> Tensor:  # noqa: ARG004
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override] # noqa: ARG004
        return None, gradient


def unless_changed(original: Tensor, recomputed: Tensor, changed: bool) -> Tensor:
    """The recomputed tensor if a hook changed it, else the model's own value, bit for bit.

    Gradients are those of the recomputed tensor in both cases: a hook that returns its tensor
    detached changes no value, but stops the gradient.
    """
    if changed:
        return recomputed
    if not torch.is_grad_enabled():
        return original
    if recomputed.requires_grad:
        return _ValueOf.apply(original.detach(), recomputed)
    return original.detach()

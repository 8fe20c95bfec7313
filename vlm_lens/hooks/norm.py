"""Taps inside a LayerNorm or RMSNorm: its scale and its normalised input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.hooks.patch_rows import PatchRows
from vlm_lens.hooks.recomputed import unless_changed
from vlm_lens.hooks.shared import Shared
from vlm_lens.hooks.tap import Tap, fire, recomputed_modules


class NormProbe(Shared):
    """Computes a norm in the open, ``x / scale`` and then ``* weight + bias``, with two taps.

    `scale` is ``sqrt(mean(x ** 2) + eps)``, of the centred x in a LayerNorm, in float32 and
    ``[..., 1]``; `normalized` is ``x / scale`` in the model's dtype, before weight and bias (both
    as in TransformerLens).

    Args:
        module: The norm.
        offset: What is added to the weight before it is multiplied with (1 in Gemma).
        patch_rows: Shows what the norm works on in the plain layout.
    """

    def __init__(
        self, module: nn.Module, *, offset: float = 0.0, patch_rows: PatchRows | None = None
    ) -> None:
        self.module = module
        self.offset = offset
        self._view = None if patch_rows is None else patch_rows.view
        self.centered = isinstance(module, nn.LayerNorm)
        wire = self.use if patch_rows is None else patch_rows.wire(self.use)
        self.scale, self.normalized = Tap(wire), Tap(wire)
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def _put_in(self) -> None:
        self._handle = self.module.register_forward_hook(self._on_forward, prepend=True)
        recomputed_modules.add(self.module)

    def _take_out(self) -> None:
        assert self._handle is not None
        self._handle.remove()
        recomputed_modules.discard(self.module)

    def _on_forward(self, _module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        recomputed = self._recompute(args[0])
        return None if recomputed is None else unless_changed(output, *recomputed)

    def _recompute(self, x: Tensor) -> tuple[Tensor, bool] | None:
        """The norm with its taps fired, and whether they changed it; None where nothing could."""
        centered = x.float()
        if self.centered:
            centered = centered - centered.mean(-1, keepdim=True)
        norm = torch.linalg.vector_norm(centered, dim=-1, keepdim=True)  # no temporary of x's size
        scale = (norm.square() / x.shape[-1] + self.eps).sqrt()
        scale, scale_changed = self._fire(self.scale, scale)
        if not (scale_changed or self.normalized.has_hooks() or centered.requires_grad):
            return None
        normalized, changed = self._fire(self.normalized, (centered / scale).to(x.dtype))
        if not (changed or scale_changed or centered.requires_grad):
            return None
        # The model may go on with a view, which a norm's own output, being contiguous, allows.
        return self._affine(normalized).contiguous(), changed or scale_changed

    def _fire(self, tap: Tap, value: Tensor) -> tuple[Tensor, bool]:
        """The tensor as a tap's hooks leave it, and whether they changed it."""
        if not tap.has_hooks() or self._view is None:
            return fire(tap, value) if tap.has_hooks() else (value, False)
        answer, changed = fire(tap, self._view.show(value))
        through = changed or torch.is_grad_enabled()
        return (self._view.put_back(answer, value) if through else value), changed

    def _affine(self, normalized: Tensor) -> Tensor:
        module: Any = self.module
        weight = getattr(module, "weight", None)
        if weight is None:  # a norm without weight and bias
            return normalized
        weighted = normalized * (weight + self.offset if self.offset else weight)
        bias = getattr(module, "bias", None)
        return weighted if bias is None else weighted + bias

    @property
    def eps(self) -> float:
        """The constant that keeps the scale away from zero, whatever the family calls it."""
        module: Any = self.module
        return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps

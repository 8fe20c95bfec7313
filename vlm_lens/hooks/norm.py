"""Taps inside a LayerNorm or RMSNorm: its scale and its normalised input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.hooks.recomputed import unless_changed
from vlm_lens.hooks.tap import Removable, Tap, fire


class NormProbe:
    """Computes a norm in the open, ``x / scale`` and then ``* weight + bias``, with two taps.

    `scale` is ``sqrt(mean(x ** 2) + eps)``, of the centred x in a LayerNorm, in float32 and
    ``[..., 1]``; `normalized` is ``x / scale`` in the model's dtype, before weight and bias (both
    as in TransformerLens).
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.centered = isinstance(module, nn.LayerNorm)
        self.scale = Tap(self._wire)
        self.normalized = Tap(self._wire)
        self._users = 0
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def _wire(self, _tap: Tap) -> Removable:
        if self._handle is None:
            self._handle = self.module.register_forward_hook(self._on_forward, prepend=True)
        self._users += 1
        return self

    def remove(self) -> None:
        """One tap fewer; with the last one the norm module is left alone."""
        self._users -= 1
        if self._users == 0 and self._handle is not None:
            self._handle.remove()
            self._handle = None

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
        scale, scale_changed = fire(self.scale, scale) if self.scale.has_hooks() else (scale, False)
        if not (scale_changed or self.normalized.has_hooks() or centered.requires_grad):
            return None
        normalized, changed = fire(self.normalized, (centered / scale).to(x.dtype))
        if not (changed or scale_changed or centered.requires_grad):
            return None
        return self._affine(normalized), changed or scale_changed

    def _affine(self, normalized: Tensor) -> Tensor:
        module: Any = self.module
        weighted = normalized * module.weight
        bias = getattr(module, "bias", None)
        return weighted if bias is None else weighted + bias

    @property
    def eps(self) -> float:
        """The constant that keeps the scale away from zero, whatever the family calls it."""
        module: Any = self.module
        return module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps

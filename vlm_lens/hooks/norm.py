"""Taps inside a LayerNorm or RMSNorm: its scale and its normalised input."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm_lens.hooks.adapters import adapted, running
from vlm_lens.hooks.patch_rows import PatchRows
from vlm_lens.hooks.place import Place
from vlm_lens.hooks.recomputed import unless_changed
from vlm_lens.hooks.shared import SharedAt
from vlm_lens.hooks.tap import Tap, fire, recomputed_modules


def center_and_scale(
    x: Float[Tensor, "*batch d"], *, centers: bool, eps: float
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch 1"]]:
    """What a norm divides, in float32, and what by: ``sqrt(mean(x ** 2) + eps)``.

    Args:
        x: The norm's input.
        centers: Whether the norm takes the mean off it first, as a LayerNorm does.
        eps: What keeps the scale away from zero.

    Example:
        >>> center_and_scale(torch.tensor([1.0, 3.0, 1.0, 3.0]), centers=True, eps=0.0)
        (tensor([-1.,  1., -1.,  1.]), tensor([1.]))
    """
    centered = x.float()
    if centers:
        centered = centered - centered.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(centered, dim=-1, keepdim=True)  # no temporary of x's size
    return centered, (norm.square() / x.shape[-1] + eps).sqrt()


class NormProbe(SharedAt):
    """Computes a norm in the open, ``x / scale`` and then ``* weight + bias``, with two taps.

    `scale` is ``sqrt(mean(x ** 2) + eps)``, of the centred x in a LayerNorm, in float32 and
    ``[..., 1]``; `normalized` is ``x / scale`` in the model's dtype, before weight and bias (both
    as in TransformerLens).

    Args:
        place: Where the norm is.
        offset: What is added to the weight before it is multiplied with (1 in Gemma).
        patch_rows: Shows what the norm works on in the plain layout.
    """

    def __init__(
        self, place: Place, *, offset: float = 0.0, patch_rows: PatchRows | None = None
    ) -> None:
        super().__init__(place)
        self.offset = offset
        self._view = None if patch_rows is None else patch_rows.view
        wire = self.use if patch_rows is None else patch_rows.wire(self.use)
        self.scale = Tap(wire, patch_rows=patch_rows)
        self.normalized = Tap(wire, patch_rows=patch_rows)
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def _put_in(self) -> None:
        if adapted(self.module):
            raise TypeError(
                f"Expected a norm to look into at {self.place.path!r}, but an adapter is on it: "
                "merge the adapter (peft's merge_and_unload) to hook its scale."
            )
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
        norm = running(self.module)
        centered, scale = center_and_scale(x, centers=centers(norm), eps=eps_of(norm))
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
        module = running(self.module)
        weight = getattr(module, "weight", None)
        if weight is None:  # a norm without weight and bias
            return normalized
        weighted = normalized * (weight + self.offset if self.offset else weight)
        bias = getattr(module, "bias", None)
        return weighted if bias is None else weighted + bias


def centers(norm: nn.Module) -> bool:
    """Whether a norm takes the mean away, as a LayerNorm does and an RMSNorm does not."""
    return isinstance(norm, nn.LayerNorm)


def eps_of(norm: Any) -> float:
    """The constant that keeps a norm's scale away from zero, whatever the family calls it."""
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps

"""A norm as taps: its scale and its normalised input."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.architectures.components.component import Component, readable
from vlm_lens.hooks import NormProbe, PatchRows, Place
from vlm_lens.hooks.adapters import beneath, effective
from vlm_lens.hooks.norm import center_and_scale, centers, eps_of


class HookedNorm(Component):
    """A LayerNorm or RMSNorm: `hook_scale`, `hook_normalized`, weights `w` and `b`.

    Args:
        place: Where the norm is.
        offset: What the norm adds to its weight before it multiplies (1 in Gemma).
        patch_rows: Where each patch lies in its tensors, if they are not in the plain layout.
    """

    def __init__(
        self, place: Place, *, offset: float = 0.0, patch_rows: PatchRows | None = None
    ) -> None:
        super().__init__(place, patch_rows=patch_rows)
        self.offset = offset
        probe = NormProbe(place, offset=offset, patch_rows=patch_rows)
        self.hook_scale = probe.scale
        self.hook_normalized = probe.normalized

    @property
    def eps(self) -> float:
        """The constant that keeps the scale away from zero."""
        return eps_of(beneath(self.hf_module))

    @property
    def centers(self) -> bool:
        """Whether the norm takes the mean away, as a LayerNorm does."""
        return centers(beneath(self.hf_module))

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Apply the norm, weight and bias included."""
        return self.hf_module(x)

    def normalized(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The input divided by its own scale, without weight and bias."""
        centered, scale = center_and_scale(x, centers=self.centers, eps=self.eps)
        return (centered / scale).to(x.dtype)

    @property
    def w(self) -> Float[Tensor, " d_model"]:
        """What the normalised input is multiplied with."""
        norm = effective(self.hf_module)
        weight = readable(norm.weight, norm)
        return weight + self.offset if self.offset else weight

    @property
    def b(self) -> Float[Tensor, " d_model"]:
        norm = effective(self.hf_module)
        bias = getattr(norm, "bias", None)
        return torch.zeros_like(self.w) if bias is None else readable(bias, norm)

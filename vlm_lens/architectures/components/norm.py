"""A norm as taps: its scale and its normalised input."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm_lens.architectures.components.component import Component, readable
from vlm_lens.hooks import NormProbe, PatchRows


class HookedNorm(Component):
    """A LayerNorm or RMSNorm: `hook_scale`, `hook_normalized`, weights `w` and `b`.

    Args:
        module: The norm.
        offset: What the norm adds to its weight before it multiplies (1 in Gemma).
        patch_rows: Where each patch lies in its tensors, if they are not in the plain layout.
    """

    def __init__(
        self, module: nn.Module, *, offset: float = 0.0, patch_rows: PatchRows | None = None
    ) -> None:
        super().__init__(module, patch_rows=patch_rows)
        self.offset = offset
        probe = NormProbe(module, offset=offset, patch_rows=patch_rows)
        self.hook_scale = probe.scale
        self.hook_normalized = probe.normalized
        self.eps = probe.eps
        self.centers = probe.centered

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Apply the norm, weight and bias included."""
        return self.hf_module(x)

    @property
    def w(self) -> Float[Tensor, " d_model"]:
        """What the normalised input is multiplied with."""
        weight = readable(self.hf_module.weight, self.hf_module)
        return weight + self.offset if self.offset else weight

    @property
    def b(self) -> Float[Tensor, " d_model"]:
        bias = getattr(self.hf_module, "bias", None)
        return torch.zeros_like(self.w) if bias is None else readable(bias, self.hf_module)

"""MLPs as taps: their neurons before and after the activation, and their weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from vlm_lens.architectures.base import MLPPaths
from vlm_lens.architectures.components.component import Component, Projection, bias_of, weight_of
from vlm_lens.hooks import ArchitectureError, PatchRows, Place


class HookedMLP(Component):
    """An MLP: `hook_pre`, `hook_post`, and in a gated one `hook_act` and `hook_pre_linear`.

    Args:
        root: What the paths are relative to.
        paths: Where its parts are.
        patch_rows: Where each patch lies in its tensors, if they are not in the plain layout.
    """

    def __init__(
        self, root: Place, paths: MLPPaths, *, patch_rows: PatchRows | None = None
    ) -> None:
        down = root.at(paths.down)
        super().__init__(down, patch_rows=patch_rows)
        self._gate, self._up = _projections(root, paths)
        first = self._up if self._gate is None else self._gate
        self.hook_pre = self.output_tap(first.place, first.view)
        if self._gate is not None and paths.act is not None:
            self.hook_act = self.output_tap(root.at(paths.act))
            self.hook_pre_linear = self.output_tap(self._up.place, self._up.view)
        self.hook_post = self.input_tap(down)

    @property
    def gated(self) -> bool:
        return self._gate is not None

    @property
    def d_model(self) -> int:
        """Width of the residual stream that the MLP reads."""
        return self._up.module.in_features

    @property
    def d_mlp(self) -> int:
        """Number of neurons."""
        return self.hf_module.in_features

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self._up.weight

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"] | None:
        return None if self._gate is None else self._gate.weight

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return weight_of(self.hf_module)

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        return self._up.bias

    @property
    def b_gate(self) -> Float[Tensor, " d_mlp"] | None:
        return None if self._gate is None else self._gate.bias

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        return bias_of(self.hf_module)


def _projections(root: Place, paths: MLPPaths) -> tuple[Projection | None, Projection]:
    if paths.gate_up is not None:
        fused = root.at(paths.gate_up)
        half = fused.module.out_features // 2
        return Projection(fused, 0, half), Projection(fused, half, 2 * half)
    if paths.up is None:
        raise ArchitectureError(f"Expected up or gate_up in the record, got {paths}.")
    gate = None if paths.gate is None else Projection(root.at(paths.gate))
    return gate, Projection(root.at(paths.up))

"""MLPs as taps: their neurons before and after the activation, and their weights."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from vlm_lens.architectures.base import MLPPaths
from vlm_lens.architectures.components.component import (
    Component,
    Projection,
    n_inputs,
    n_outputs,
)
from vlm_lens.hooks import ArchitectureError, PatchRows, Place, slice_part


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
        self.projections = {**_first_layers(root, paths), "W_out": Projection(down)}
        up = self.projections["W_in"]
        first = self.projections.get("W_gate", up)
        self.hook_pre = self.output_tap(first.place, first.view)
        if self.gated and paths.act is not None:
            self.hook_act = self.output_tap(root.at(paths.act))
            self.hook_pre_linear = self.output_tap(up.place, up.view)
        self.hook_post = self.input_tap(down, private=True)

    @property
    def gated(self) -> bool:
        return "W_gate" in self.projections

    @property
    def d_model(self) -> int:
        """Width of the residual stream that the MLP reads."""
        return n_inputs(self.projections["W_in"].module)

    @property
    def d_mlp(self) -> int:
        """Number of neurons."""
        return n_inputs(self.hf_module)

    @property
    def d_out(self) -> int:
        """Width of what the MLP gives."""
        return n_outputs(self.hf_module)

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.projections["W_in"].weight

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"] | None:
        return self.projections["W_gate"].weight if self.gated else None

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.projections["W_out"].weight

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        return self.projections["W_in"].bias

    @property
    def b_gate(self) -> Float[Tensor, " d_mlp"] | None:
        return self.projections["W_gate"].bias if self.gated else None

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        return self.projections["W_out"].bias


def _first_layers(root: Place, paths: MLPPaths) -> dict[str, Projection]:
    """The linear layer in front of the neurons, or both of a gated MLP."""
    if paths.gate_up is not None:
        fused = root.at(paths.gate_up)
        half = n_outputs(fused.module) // 2
        gate, up = slice_part(0, half), slice_part(half, 2 * half)
        return {"W_gate": Projection(fused, gate), "W_in": Projection(fused, up)}
    if paths.up is None:
        raise ArchitectureError(f"Expected up or gate_up in the record, got {paths}.")
    up = {"W_in": Projection(root.at(paths.up))}
    return up if paths.gate is None else {"W_gate": Projection(root.at(paths.gate)), **up}

"""Projectors as taps: what comes in, their own neurons, what the language model gets."""

from __future__ import annotations

from torch import nn

from vlm_lens.architectures.base import (
    MLPPaths,
    ProjectorPaths,
    config_at,
    size_in,
)
from vlm_lens.architectures.components.attention import HookedAttention
from vlm_lens.architectures.components.component import Component
from vlm_lens.architectures.components.mlp import HookedMLP
from vlm_lens.architectures.components.norm import HookedNorm
from vlm_lens.hooks import PatchRows, Place, input_of, tap_at


class HookedProjector(Component):
    """A projector: `hook_in`, `hook_out`, and of a norm, neurons or attention what it has.

    Args:
        hf_model: The Hugging Face model.
        paths: Where the projector is in it.
    """

    def __init__(self, hf_model: nn.Module, paths: ProjectorPaths) -> None:
        model = Place(hf_model)
        place, source = model.at(paths.module), model.at(paths.rows_from or paths.module)
        inward, outward = (
            None if rows is None else PatchRows(source, rows)
            for rows in (paths.rows_in, paths.rows_out)
        )
        super().__init__(place, patch_rows=outward)
        self.hook_in = tap_at(input_of, place, patch_rows=inward)
        if paths.norm is not None:
            norm = model.at(paths.norm)
            self.norm = HookedNorm(norm, offset=paths.norm_offset, patch_rows=outward)
        if paths.attn is not None:
            n_heads = size_in(config_at(hf_model.config, paths.config), "n_heads")
            assert n_heads is not None
            self.attn = HookedAttention(model, paths.attn, n_heads=n_heads, n_kv=n_heads)
        if paths.linear_1 is not None and paths.linear_2 is not None:
            two = MLPPaths(up=paths.linear_1, down=paths.linear_2)
            self.mlp = HookedMLP(model, two, patch_rows=outward)
        self.hook_out = self.output_tap(place)
        if paths.deepstack is not None:
            self.deepstack = nn.ModuleList(self._deepstack(hf_model, paths))

    def _deepstack(self, hf_model: nn.Module, paths: ProjectorPaths) -> list[HookedProjector]:
        mergers = Place(hf_model, str(paths.deepstack)).module
        prefix = f"{paths.module}."
        inner = [str(path).removeprefix(prefix) for path in (paths.linear_1, paths.linear_2)]
        return [
            HookedProjector(
                hf_model,
                ProjectorPaths(
                    module=f"{paths.deepstack}.{i}",
                    linear_1=f"{paths.deepstack}.{i}.{inner[0]}",
                    linear_2=f"{paths.deepstack}.{i}.{inner[1]}",
                    rows_in=paths.rows_in,
                    rows_out=paths.rows_out,
                    rows_from=paths.rows_from,
                ),
            )
            for i in range(len(mergers))
        ]

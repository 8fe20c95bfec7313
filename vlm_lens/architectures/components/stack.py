"""A stack of blocks around one residual stream: an encoder, a Q-Former or a text model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vlm_lens.architectures.base import (
    BlockPaths,
    StackPaths,
    config_at,
    size_in,
)
from vlm_lens.architectures.components.block import HookedBlock
from vlm_lens.architectures.components.component import Component
from vlm_lens.architectures.components.norm import HookedNorm
from vlm_lens.architectures.model_types import blocks_of
from vlm_lens.hooks import ArchitectureError, PatchRows, Place, PositionsProbe, Tap


class HookedStack(Component):
    """Where a residual stream starts, its blocks, and what an encoder hands on.

    Args:
        hf_model: The Hugging Face model.
        paths: Where the stack is in it.
    """

    blocks: Any
    ln_final: HookedNorm
    output_layer: int | None = None

    def __init__(self, hf_model: nn.Module, paths: StackPaths) -> None:
        model = Place(hf_model)
        names = [name for name, _ in model.at(paths.blocks).module.named_children()]
        patch_rows = None
        if paths.rows is not None:
            patch_rows = PatchRows(model.at(paths.rows_from), paths.rows)
        start = paths.start or paths.embedded or f"{paths.blocks}.0"
        super().__init__(model.at(start), patch_rows=patch_rows)
        self._add_embedding(model, paths)
        places = [model.at(f"{paths.blocks}.{name}") for name in names]
        self.blocks = nn.ModuleList(self._build(hf_model, paths, places))
        for name, inner in paths.sub_stacks.items():
            self.add_module(name, HookedStack(hf_model, inner))
        if paths.ln_final is not None:
            norm = model.at(paths.ln_final)
            offset = self.blocks[0].norm_offset
            self.ln_final = HookedNorm(norm, offset=offset, patch_rows=patch_rows)
        self._add_output(hf_model, paths)

    def _add_embedding(self, model: Place, paths: StackPaths) -> None:
        """Where the stream starts, and the positions that are added to it before the blocks."""
        if paths.embedded is None:
            keyword = "inputs_embeds" if paths.start else None
            self.hook_embed = self.input_tap(self.place, keyword=keyword)
            return
        self.hook_embed = self.output_tap(self.place)
        if paths.positions is not None:
            self.hook_pos_embed = PositionsProbe(
                model.at(paths.positions), embedding=self.place
            ).tap

    def _add_output(self, hf_model: Any, paths: StackPaths) -> None:
        """What an encoder hands on, wherever the record says that it leaves."""
        if paths.output is not None:
            self.hook_out = self.output_tap(Place(hf_model, paths.output))
        elif paths.handed_to is not None:
            self.hook_out = self.input_tap(Place(hf_model, paths.handed_to))
        elif paths.output_layer is not None:
            self.output_layer = paths.output_layer(hf_model.config)
            self.hook_out = self._state(self.output_layer)

    @property
    def hf_block(self) -> nn.Module:
        """The first of the Hugging Face blocks."""
        return self.blocks[0].hf_module

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.blocks[0].mlp.d_model

    def _build(
        self, hf_model: Any, paths: StackPaths, places: list[Place]
    ) -> Iterable[HookedBlock]:
        config = config_at(hf_model.config, paths.config)
        n_heads = size_in(config, "n_heads")
        if n_heads is None:
            raise ArchitectureError(f"Expected {paths.config} to state its number of heads.")
        for place in places:
            yield HookedBlock(
                place,
                _fitting(place.module, paths.block or blocks_of(config), config, paths.blocks),
                n_heads=n_heads,
                n_kv=size_in(config, "n_key_value_heads") or n_heads,
                patch_rows=self.patch_rows,
            )

    def _state(self, layer: int) -> Tap:
        """Hidden state i leaves block i - 1; state 0 is what enters the first block."""
        blocks = [block.place for block in self.blocks]
        if not 0 <= layer <= len(blocks):
            raise ArchitectureError(
                f"Expected the encoder's output to be one of its hidden states 0 to {len(blocks)}, "
                f"but the record's output_layer says {layer}."
            )
        return self.input_tap(blocks[0]) if layer == 0 else self.output_tap(blocks[layer - 1])


def _fitting(
    block: nn.Module, tables: BlockPaths | tuple[BlockPaths, ...], config: Any, where: str
) -> BlockPaths:
    """The first table that is for such a configuration, and whose paths are all in the block."""
    if isinstance(tables, BlockPaths):
        return tables
    modules = {name for name, _ in block.named_modules()}
    for table in tables:
        parts = [part for part in (table.mlp, table.attn, table.cross_attn) if part is not None]
        paths = {path for part in parts for path in vars(part).values() if isinstance(path, str)}
        meant = all(getattr(config, name, None) == value for name, value in table.when.items())
        if meant and {table.ln1, table.ln2, *paths} <= modules:
            return table
    raise ArchitectureError(
        f"None of the {len(tables)} tables of paths fits {type(block).__name__} in {where!r}: "
        f"it has {sorted(name for name in modules if name.count('.') < 2 and name)}."
    )

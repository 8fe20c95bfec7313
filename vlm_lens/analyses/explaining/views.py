"""From prepared samples to the positions at which a neuron is read, at any hook point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vlm_lens.analyses.exemplars import SampleView
from vlm_lens.geometry import ImageLayout, PatchGrid
from vlm_lens.inputs import TokenMap
from vlm_lens.inputs.token_kinds import NO_CELL
from vlm_lens.neurons.neuron import split_name
from vlm_lens.passes import Batch

COMPONENTS = ("language_model", "decoder", "encoder", "vision_encoder", "projector")
"""Where positions are text, or patches that have a place in an image."""


@dataclass(frozen=True, eq=False)
class PlacedView:
    """A sample's positions, and where they are in an activation.

    Attributes:
        view: The positions.
        rows: Their numbers among all positions of all rows of the activation.
    """

    view: SampleView
    rows: Int[Tensor, " n"]


class Views:
    """The positions of a batch's samples, at any hook point with places.

    Args:
        batch: The batch.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.passes import Answers, make_batch
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> batch = make_batch(model, load_samples("shapes-llava", n=2), Answers())
        >>> [first, _] = Views(batch).of("blocks.0.mlp.hook_act", *batch.real.shape)
        >>> first.view
        SampleView(sample 0: 64 patches, 11 tokens)
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._owners = batch.owners()
        self._known: dict[tuple[str, int, int], list[PlacedView]] = {}

    def of(self, name: str, n_rows: int, n_positions: int) -> list[PlacedView]:
        """One view for each sample of the batch, in order.

        Args:
            name: A hook name.
            n_rows: Size of the first axis of the activations there.
            n_positions: Size of their second axis.

        Raises:
            ValueError: Positions there have no place in text or image, or activations of this
                shape are not what the batch gives.
        """
        component = check_component(name)
        key = (component, n_rows, n_positions)
        if key not in self._known:
            owners = self._owners.of(name, n_rows, n_positions)
            n_samples = len(self._batch.numbers)
            if component in ("language_model", "encoder", "decoder"):
                found = [self._of_tokens(component, i, owners) for i in range(n_samples)]
            else:
                found = [self._of_patches(name, i, owners) for i in range(n_samples)]
            self._known[key] = found
        return self._known[key]

    def _of_tokens(self, component: str, sample: int, owners: Int[Tensor, "row pos"]) -> PlacedView:
        maps = self._batch.maps
        if component == "decoder" and self._batch.decoder is not None:
            maps = self._batch.decoder
        token_map, own = maps[sample], owners[sample] == sample
        chosen = [pos for pos in own.nonzero()[:, 0].tolist() if _is_shown(token_map, pos)]
        is_patch = [token_map.modality[pos] == "image" for pos in chosen]
        nowhere = (np.nan,) * 4
        view = self._view(
            sample,
            kinds=tuple("image" if patch else "text" for patch in is_patch),
            tokens=tuple(token_map.tokens[pos] for pos in chosen),
            roles=tuple(token_map.role[pos] for pos in chosen),
            image_index=[token_map.image_index[pos] for pos in chosen],
            boxes=[
                token_map.box(pos) if patch else nowhere
                for pos, patch in zip(chosen, is_patch, strict=True)
            ],
        )
        return PlacedView(view, torch.tensor(chosen, dtype=torch.long) + sample * owners.shape[1])

    def _of_patches(self, name: str, sample: int, owners: Int[Tensor, "row pos"]) -> PlacedView:
        """Rows of an encoder of images, or of a projector, are pictures."""
        own = owners == sample
        its_rows = own.any(1).nonzero()[:, 0].tolist()
        layouts = self._batch.maps[sample].layouts
        pictures = list(_pictures(name, layouts, [int(own[row].sum()) for row in its_rows]))
        places, images, boxes = [], [], []
        for row, (image, grid, offset) in zip(its_rows, pictures, strict=True):
            cells = [(r, c) for r in range(grid.rows) for c in range(grid.cols)]
            first = row * owners.shape[1] + offset
            places += range(first, first + len(cells))
            images += [image] * len(cells)
            boxes += [grid.box(*cell) for cell in cells]
        n = len(places)
        view = self._view(
            sample,
            kinds=("image",) * n,
            tokens=("",) * n,
            roles=("prompt",) * n,
            image_index=images,
            boxes=boxes,
        )
        return PlacedView(view, torch.tensor(places, dtype=torch.long))

    def _view(self, sample: int, *, image_index: list[int], boxes: list, **rest: Any) -> SampleView:
        return SampleView(
            number=self._batch.numbers[sample],
            sample=self._batch.samples[sample],
            image_index=np.array(image_index, dtype=np.int64),
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            **rest,
        )


def check_component(name: str) -> str:
    """The part of the model that a hook point is in, if positions there are text or have a place.

    Raises:
        ValueError: They are not.
    """
    component = split_name(name)[0].split(".")[0]
    if component not in COMPONENTS or ".text_mlp." in name:
        raise ValueError(
            f"the positions of {name!r} are neither tokens of text nor patches with a place in an "
            f"image, so its neurons have no exemplars to show: choose neurons of "
            f"{', '.join(COMPONENTS)}"
        )
    return component


def _is_shown(token_map: TokenMap, pos: int) -> bool:
    modality = token_map.modality[pos]
    return modality == "text" or (modality == "image" and token_map.cells[pos] != NO_CELL)


def _pictures(
    name: str, layouts: list[ImageLayout], widths: list[int]
) -> Iterator[tuple[int, PatchGrid, int]]:
    """For each row: its image, its grid, and how many positions come before its patches."""
    views = [
        (image, layout, i) for image, layout in enumerate(layouts) for i in range(len(layout.views))
    ]
    if len(views) != len(widths):
        raise ValueError(
            f"expected a row at {name!r} for each of the {len(views)} pictures that the encoder "
            f"sees of a sample, got {len(widths)}: their patches cannot be placed"
        )
    for (image, layout, i), width in zip(views, widths, strict=True):
        view = layout.views[i]
        n_patches = view.rows * view.cols
        # Behind the merging of patches, where each view has its own tokens.
        grid = layout.grids[i] if len(layout.grids) == len(layout.views) else None
        if width in (n_patches, n_patches + layout.n_class):
            yield image, view, width - n_patches
        elif grid is not None and width == grid.rows * grid.cols:
            yield image, grid, 0
        else:
            raise ValueError(
                f"expected {n_patches} positions for the patches of a picture at {name!r}, got "
                f"{width}: they cannot be placed"
            )

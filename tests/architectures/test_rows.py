"""Rows of patches against slow loops, written from how processors and towers say they pack them."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlm_lens.architectures import rows
from vlm_lens.hooks.patch_rows import NO_ROW

Cell = tuple[int, int, int, int]
"""Image, frame, row and column of a patch or of a merged token."""
FEW = settings(max_examples=60, deadline=None)


class Module(nn.Module):
    """Something with the settings of a tower."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        for name, value in settings.items():
            setattr(self, name, value)


def table(places: dict[int, list[int]]) -> list[list[int]]:
    """The rows of every picture, filled up to the longest."""
    longest = max(map(len, places.values()))
    return [row + [NO_ROW] * (longest - len(row)) for row in places.values()]


# Qwen-VL ------------------------------------------------------------------------------------------

grids = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3
)
"""Frames, and rows and columns of merge groups, of every image."""
sides = st.integers(1, 3)
window_sides = st.none() | st.integers(1, 3)
"""How many merge groups a window is wide, None for a tower without windows."""


def groups_in_order(n_rows: int, n_cols: int, window: int | None) -> list[tuple[int, int]]:
    """Merge groups of a frame: row by row or, where there are windows, window by window."""
    if window is None:
        return list(product(range(n_rows), range(n_cols)))
    groups = []
    for top, left in product(range(0, n_rows, window), range(0, n_cols, window)):
        for row, col in product(range(top, top + window), range(left, left + window)):
            if row < n_rows and col < n_cols:
                groups.append((row, col))
    return groups


def stored_groups(grid: list[tuple[int, int, int]], window: int | None) -> list[Cell]:
    """Merge groups of all images, as the tower stores them."""
    return [
        (image, frame, row, col)
        for image, (n_frames, n_rows, n_cols) in enumerate(grid)
        for frame in range(n_frames)
        for row, col in groups_in_order(n_rows, n_cols, window)
    ]


def stored_patches(grid: list[tuple[int, int, int]], side: int, window: int | None) -> list[Cell]:
    """Patches of all images: those of a merge group follow each other, row by row."""
    return [
        (image, frame, row * side + y, col * side + x)
        for image, frame, row, col in stored_groups(grid, window)
        for y, x in product(range(side), range(side))
    ]


def raster(stored: list[Cell], grid: list[tuple[int, int, int]], side: int) -> list[list[int]]:
    """Where each cell of each frame is stored, row by row."""
    places: dict[int, list[int]] = {}
    for image, (n_frames, n_rows, n_cols) in enumerate(grid):
        for frame in range(n_frames):
            cells = product(range(n_rows * side), range(n_cols * side))
            found = [stored.index((image, frame, row, col)) for row, col in cells]
            places[len(places)] = found
    return table(places)


def qwen(
    grid: list[tuple[int, int, int]], side: int, window: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    """A tower with patches of 4 pixels, and its arguments."""
    of_windows = {} if window is None else {"window_size": window * side * 4, "patch_size": 4}
    tower = Module(spatial_merge_size=side, **of_windows)
    in_patches = [(frames, n_rows * side, n_cols * side) for frames, n_rows, n_cols in grid]
    return tower, {"grid_thw": torch.tensor(in_patches)}


@FEW
@given(grids, sides, window_sides)
def test_qwen_patches(grid: list[tuple[int, int, int]], side: int, window: int | None):
    found = rows.qwen_patch_rows(*qwen(grid, side, window))
    assert found.tolist() == raster(stored_patches(grid, side, window), grid, side)


@FEW
@given(grids, sides, window_sides)
def test_qwen_merged_tokens(grid: list[tuple[int, int, int]], side: int, window: int | None):
    found = rows.qwen_merged_rows(*qwen(grid, side, window))
    assert found.tolist() == raster(stored_groups(grid, window), grid, 1)


def test_qwen_windows_by_hand():
    """A frame of 1x3 groups of 1 patch in windows of 2, and one of 2x1."""
    found = rows.qwen_patch_rows(*qwen([(1, 2, 3), (1, 2, 1)], 1, 2))
    assert found.tolist() == [[0, 1, 4, 2, 3, 5], [6, 7, NO_ROW, NO_ROW, NO_ROW, NO_ROW]]


# Pixtral ------------------------------------------------------------------------------------------

SIZES = st.lists(st.tuples(st.integers(8, 40), st.integers(8, 40)), min_size=1, max_size=4)
"""Height and width of images in pixels, no multiples of anything."""


def one_after_the_other(sizes: list[tuple[int, int]], cell: int) -> list[list[int]]:
    places: dict[int, list[int]] = {}
    stored = 0
    for image, (height, width) in enumerate(sizes):
        places[image] = []
        for _ in product(range(height // cell), range(width // cell)):
            places[image].append(stored)
            stored += 1
    return table(places)


@FEW
@given(SIZES)
def test_pixtral_patches(sizes: list[tuple[int, int]]):
    arguments = {"image_sizes": torch.tensor(sizes), "pixel_values": torch.zeros(1, 3, 40, 40)}
    found = rows.pixtral_patch_rows(Module(patch_size=4), arguments)
    assert found.tolist() == one_after_the_other(sizes, 4)


@FEW
@given(st.integers(1, 3), st.integers(4, 40), st.integers(4, 40))
def test_pixtral_images_without_sizes_fill_the_tensor(n_images: int, height: int, width: int):
    arguments = {"pixel_values": torch.zeros(n_images, 3, height, width)}
    found = rows.pixtral_patch_rows(Module(patch_size=4), arguments)
    assert found.tolist() == one_after_the_other([(height, width)] * n_images, 4)


@FEW
@given(SIZES)
def test_pixtral_tokens_before_and_after_merging(sizes: list[tuple[int, int]]):
    projector = Module(patch_merger=Module(patch_size=4, spatial_merge_size=2))
    arguments = {"image_features": None, "image_sizes": torch.tensor(sizes)}
    found = rows.pixtral_projector_rows(projector, arguments)
    assert found.tolist() == one_after_the_other(sizes, 4)
    found = rows.pixtral_merged_rows(projector, arguments)
    assert found.tolist() == one_after_the_other(sizes, 8)


# Mllama and OPT -----------------------------------------------------------------------------------

TILES = st.lists(st.integers(1, 4), min_size=1, max_size=4)
"""How many of its four tiles each image uses."""


def tiles(used: list[int], n_patches: int, padding: int) -> list[list[int]]:
    """Every image has four slots for tiles, each with its patches and then the padding."""
    places: dict[int, list[int]] = {}
    stored = 0
    for n_used in used:
        for tile in range(4):
            here = [stored + patch for patch in range(n_patches)]
            if tile < n_used:
                places[len(places)] = here
            stored += n_patches + padding
    return table(places)


@FEW
@given(TILES, st.integers(1, 17), st.booleans())
def test_mllama_tiles(used: list[int], n_patches: int, in_one_prompt: bool):
    mask = torch.tensor([[1] * n_used + [0] * (4 - n_used) for n_used in used])
    arguments = {"aspect_ratio_mask": mask[None] if in_one_prompt else mask[:, None]}
    tower = Module(num_patches=n_patches)
    padding = next(extra for extra in range(8) if (n_patches + extra) % 8 == 0)
    found = rows.mllama_patch_rows(tower, arguments)
    assert found.tolist() == tiles(used, n_patches, padding)
    found = rows.mllama_feature_rows(tower, arguments)
    assert found.tolist() == tiles(used, n_patches, 0)


def test_batches_that_a_block_flattens():
    arguments = {"hidden_states": torch.zeros(2, 3, 5)}
    assert rows.batch_rows(nn.Identity(), arguments).tolist() == [[0, 1, 2], [3, 4, 5]]

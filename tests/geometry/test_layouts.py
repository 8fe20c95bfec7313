"""What a layout says is what Hugging Face's processors do to pixels and write into prompts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.geometry.families import LAYOUTS, SIZES, built, layout_of, placeholder
from vlm_lens.geometry import ImageLayout, PatchGrid, Size

CROPS = ("kosmos2",)  # its image processor cuts off what is too long
GAPS = ("onevision-leftover",)


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(size=SIZES)
def test_the_tokens_show_each_cell_of_each_grid_once_row_by_row(name: str, size: Size):
    layout = layout_of(name, size)
    for index, grid in enumerate(layout.grids):
        shown = [tuple(token[1:]) for token in layout.tokens if token[0] == index]
        assert shown == list(np.ndindex(grid.rows, grid.cols))
    placed = sum(grid.rows * grid.cols for grid in layout.grids)
    assert placed == sum(isinstance(token, tuple) for token in layout.tokens)
    assert len({(view.rows, view.cols) for view in layout.views}) == 1


@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(size=SIZES)
def test_boxes_tile_what_a_grid_shows(name: str, size: Size):
    layout = layout_of(name, size)
    for grid in [*layout.views, *layout.grids]:
        left, top, right, bottom = grid.visible
        row = [grid.box(0, col) for col in range(grid.cols)]
        column = [grid.box(i, 0) for i in range(grid.rows)]
        assert (row[0][0], row[-1][2]) == (left, right)
        assert (column[0][1], column[-1][3]) == (top, bottom)
        if name not in GAPS:
            assert all(a[2] == b[0] for a, b in pairwise(row))
            assert all(a[3] == b[1] for a, b in pairwise(column))


@pytest.mark.sampled
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in (*CROPS, *GAPS)])
@settings(max_examples=40, deadline=None)
@given(size=SIZES)
def test_together_the_views_show_the_whole_image(name: str, size: Size):
    layout = layout_of(name, size)
    for grids in (layout.views, layout.grids):
        if grids:
            x0, y0, x1, y1 = zip(*(grid.visible for grid in grids), strict=True)
            assert (min(x0), min(y0)) == pytest.approx((0, 0), abs=1e-9)
            assert (max(x1), max(y1)) == pytest.approx(size)
            area = sum((c - a) * (d - b) for a, b, c, d in zip(x0, y0, x1, y1, strict=True))
            assert area >= size[0] * size[1] * 0.999


@pytest.mark.sampled
@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(size=SIZES)
def test_views_and_tokens_are_as_many_as_the_processor_makes(name: str, size: Size):
    layout, encoded = layout_of(name, size), _processed(name, Image.new("RGB", size))
    hf, _ = built(name)
    mask = encoded.get("image_embeds_position_mask")
    if mask is None:
        mask = encoded["input_ids"] == hf.config.image_token_id
    assert len(layout.tokens) == int(mask.sum())
    pixels = _patch_means(layout, encoded["pixel_values"].numpy())
    real = len(pixels) if name != "mllama" else int(encoded["aspect_ratio_mask"].sum())
    assert len(layout.views) == real


@pytest.mark.sampled
@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=25, deadline=None)
@given(size=st.tuples(st.integers(24, 200), st.integers(24, 200)), data=st.data())
def test_a_painted_box_lights_up_its_patch(name: str, size: Size, data):
    """Encoder patches: from pixels of the original image to those of `pixel_values`."""
    layout = layout_of(name, size)
    index = data.draw(st.integers(0, len(layout.views) - 1))
    view = layout.views[index]
    row, col = data.draw(st.integers(0, view.rows - 1)), data.draw(st.integers(0, view.cols - 1))
    x0, y0, x1, y1 = (round(edge) for edge in view.box(row, col))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return  # mostly padding, or smaller than what a filter of resizing blurs
    black = Image.new("RGB", size)
    painted = black.copy()
    painted.paste((255, 255, 255), (x0, y0, x1, y1))
    before, after = (
        _patch_means(layout, _processed(name, image)["pixel_values"].numpy())
        for image in (black, painted)
    )
    change = np.abs(after - before)[index]
    assert np.unravel_index(change.argmax(), change.shape) == (row, col)
    assert (change > 0.5 * change.max()).sum() == 1


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "onevision-leftover"])
@settings(max_examples=40, deadline=None)
@given(size=SIZES)
def test_the_cells_of_a_merged_grid_are_the_patches_of_its_tiles(name: str, size: Size):
    layout = layout_of(name, size)
    assume(len(layout.grids) > 1)  # else it is narrower than a patch
    merged, tiles = layout.grids[1], layout.views[1:]
    boxes = {tile.box(row, col) for tile in tiles for row, col in _cells(tile)}
    assert {merged.box(row, col) for row, col in _cells(merged)} <= boxes


@settings(max_examples=40, deadline=None)
@given(size=SIZES)
def test_shrunk_cells_are_larger_than_patches(size: Size):
    whole, shrunk = layout_of("llava_onevision", size), layout_of("onevision-shrunk", size)
    assume(len(whole.grids) > 1)
    before, after = whole.grids[1], shrunk.grids[1]
    assert after.visible == pytest.approx(before.visible)
    n_before, n_after = before.rows * before.cols, after.rows * after.cols
    assert after.cell_area * n_after == pytest.approx(before.cell_area * n_before)
    assert n_after <= n_before
    if n_before > 2.5 * 16:
        assert n_after <= 2 * 16


@settings(max_examples=25, deadline=None)
@given(size=SIZES)
def test_several_images_of_llava_onevision_have_one_view_each(size: Size):
    layout = layout_of("llava_onevision", size, n_images=2)
    assert len(layout.views) == len(layout.grids) == 1
    assert layout.tokens[-1] == "newline"
    assert layout.grids[0].visible == pytest.approx((0, 0, *size))


@settings(max_examples=25, deadline=None)
@given(size=st.tuples(st.integers(24, 200), st.integers(24, 200)), data=st.data())
def test_a_painted_box_of_one_of_several_images_lights_up_its_patch(size: Size, data):
    layout = layout_of("llava_onevision", size, n_images=2)
    view = layout.views[0]
    row, col = data.draw(st.integers(0, view.rows - 1)), data.draw(st.integers(0, view.cols - 1))
    x0, y0, x1, y1 = (round(edge) for edge in view.box(row, col))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return  # in the padding
    black = Image.new("RGB", size)
    painted = black.copy()
    painted.paste((255, 255, 255), (x0, y0, x1, y1))
    _, before, after = _patch_means(
        layout, _processed("llava_onevision", black, black, painted)["pixel_values"].numpy()
    )
    change = np.abs(after - before)
    assert np.unravel_index(change.argmax(), change.shape) == (row, col)


def test_pan_and_scan_crops_follow_the_whole_image():
    layout = layout_of("gemma3-crops", (100, 40))
    boxes = [(0, 0, 100, 40), (0, 0, 34, 40), (34, 0, 68, 40), (68, 0, 100, 40)]
    assert [view.visible for view in layout.views] == [pytest.approx(box) for box in boxes]


def test_the_finest_grid_comes_first_and_the_overview_last():
    layout = layout_of("idefics3", (60, 60))
    assert layout.overview == len(layout.grids) - 1
    assert layout.by_detail[-1] == layout.overview
    with pytest.raises(ValueError, match="lie on no grid: they are queries, or are read by"):
        _ = layout_of("kosmos2", (60, 60)).overview


def test_values_of_the_encoder():
    layout = layout_of("internvl", (66, 34))
    assert (len(layout.views), layout.n_class, layout.n_positions) == (3, 1, 17)
    values = np.arange(3 * 17).reshape(3, 17)
    arranged = layout.patch_values(values)
    assert [int(view[0, 0]) for view in arranged] == [1, 18, 35]
    for other in (values[:, 1:], values.ravel(), values[:, 1:].ravel(), np.pad(values, (0, 5))):
        again = layout.patch_values(other)
        assert all(np.array_equal(a, b) for a, b in zip(arranged, again, strict=True))
    with pytest.raises(ValueError, match=r"expected 3 views of 16 values.*or of 17 .*\(2, 17\)"):
        layout.patch_values(values[:2])


def _cells(grid: PatchGrid) -> list[tuple[int, ...]]:
    return list(np.ndindex(grid.rows, grid.cols))


def _processed(name: str, *images: Image.Image) -> Any:
    """What the real processor makes of a prompt with images, their colours as they are."""
    _, processor = built(name)
    kept = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    return processor(
        images=[list(images)],
        text=[placeholder(name) * len(images) + " what"],
        text_kwargs={"return_tensors": "pt"},
        images_kwargs=kept,
    )


def _patch_means(layout: ImageLayout, pixels: np.ndarray) -> np.ndarray:
    """The mean of every patch of every view, [views, rows, cols], from `pixel_values`."""
    view = layout.views[0]
    if pixels.ndim == 2:  # Qwen-VL: groups of 2 x 2 patches, one after the other
        means = pixels.mean(axis=1).reshape(view.rows // 2, view.cols // 2, 2, 2)
        return means.transpose(0, 2, 1, 3).reshape(1, view.rows, view.cols)
    tiles = pixels.reshape(-1, *pixels.shape[-3:]).astype(np.float64).mean(axis=1)
    size = view.patch_size
    tiles = tiles[:, : view.rows * size, : view.cols * size]
    return tiles.reshape(-1, view.rows, size, view.cols, size).mean(axis=(2, 4))

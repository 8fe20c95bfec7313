"""The geometry agrees with what Hugging Face's processors really do to pixels."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from vlm_lens.geometry import PatchGrid, PixelTransform, pixel_transform

RAW: dict[str, Any] = {"do_rescale": False, "do_normalize": False}
SIZES = st.tuples(st.integers(1, 250), st.integers(1, 250))


def _clip(edge: int, crop: tuple[int, int] = (32, 32), **settings: Any) -> CLIPImageProcessorPil:
    height, width = crop
    size = {"shortest_edge": edge}
    crop_size = {"height": height, "width": width}
    return CLIPImageProcessorPil(size=size, crop_size=crop_size, resample=2, **RAW, **settings)


def _siglip(height: int, width: int) -> SiglipImageProcessorPil:
    return SiglipImageProcessorPil(size={"height": height, "width": width}, resample=2, **RAW)


PROCESSORS = [
    _clip(32),
    _clip(33),
    _clip(40),
    _clip(19),  # smaller than the crop: the processor pads
    _clip(24, crop=(20, 36)),
    _clip(32, do_center_crop=False),
    _clip(32, do_resize=False),
    _siglip(32, 32),
    _siglip(20, 37),
]
GRIDS = st.builds(
    lambda size, processor, patch: PatchGrid(pixel_transform(size, processor), patch),
    SIZES,
    st.sampled_from(PROCESSORS),
    st.sampled_from([5, 8, 16]),
).filter(lambda grid: grid.rows and grid.cols)


def _process(pixels: np.ndarray, processor) -> np.ndarray:
    return np.asarray(processor(Image.fromarray(pixels))["pixel_values"][0], dtype=np.float64)


@pytest.mark.sampled
@pytest.mark.parametrize("processor", PROCESSORS)
@settings(max_examples=40, deadline=None)
@given(size=SIZES)
def test_pixels_come_from_where_the_transform_says(processor, size):
    """A ramp over the columns, one over the rows and a constant, read back from pixel_values."""
    width, height = size
    step_x, step_y = 255 // width, 255 // height
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(width) * step_x
    pixels[..., 1] = np.arange(height)[:, None] * step_y
    pixels[..., 2] = 255
    seen_x, seen_y, inside = _process(pixels, processor)
    transform = pixel_transform(size, processor)
    assert inside.shape == transform.processed_size[::-1]

    rows, cols = inside.shape
    x = np.array([transform.to_original((i + 0.5, 0, 0, 0))[0] for i in range(cols)])
    y = np.array([transform.to_original((0, i + 0.5, 0, 0))[1] for i in range(rows)])
    in_x, in_y = (x > 0) & (x < width), (y > 0) & (y < height)
    assert np.array_equal(inside > 0, np.outer(in_y, in_x)), "padding lies where it says"

    # Near the borders the resampling filter is cut off, which bends the ramp there.
    margin_x = max(1, width / transform.resized_size[0])
    margin_y = max(1, height / transform.resized_size[1])
    safe_x = (x > margin_x) & (x < width - margin_x)
    safe_y = (y > margin_y) & (y < height - margin_y)
    # Values are whole numbers; and shrinking bends a ramp by up to 0.1 pixels where the filter
    # meets the pixels unevenly.
    error_x = np.abs(seen_x / step_x + 0.5 - x)[np.outer(in_y, safe_x)]
    error_y = np.abs(seen_y.T / step_y + 0.5 - y)[np.outer(in_x, safe_y)]
    assert np.all(error_x < 1.01 / step_x + 0.1 * (transform.resized_size[0] < width))
    assert np.all(error_y < 1.01 / step_y + 0.1 * (transform.resized_size[1] < height))


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("size", [(160, 100), (97, 211), (64, 64)])
def test_a_painted_box_lights_up_its_patch_and_no_other(processor, size):
    grid = PatchGrid(pixel_transform(size, processor), 8)
    for row, col in np.ndindex(grid.rows, grid.cols):
        x0, y0, x1, y1 = (round(edge) for edge in grid.box(row, col))
        if x1 - x0 < 2 or y1 - y0 < 2:
            continue  # mostly padding
        pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        pixels[y0:y1, x0:x1] = 255
        seen = _process(pixels, processor)[0, : grid.rows * 8, : grid.cols * 8]
        patches = seen.reshape(grid.rows, 8, grid.cols, 8).mean(axis=(1, 3))
        assert np.unravel_index(patches.argmax(), patches.shape) == (row, col)
        others = np.delete(patches.ravel(), row * grid.cols + col)
        assert others.size == 0 or others.max() < 0.3 * patches.max()


@settings(max_examples=200, deadline=None)
@given(grid=GRIDS)
def test_boxes_tile_the_visible_part_in_raster_order(grid: PatchGrid):
    width, height = grid.transform.original_size
    left, top, right, bottom = grid.visible
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
    boxes = [[grid.box(row, col) for col in range(grid.cols)] for row in range(grid.rows)]
    for row in boxes:
        assert (row[0][0], row[-1][2]) == (left, right)
        assert all(a[2] == b[0] for a, b in pairwise(row)), "columns meet"
    for column in zip(*boxes, strict=True):
        assert (column[0][1], column[-1][3]) == (top, bottom)
        assert all(a[3] == b[1] for a, b in pairwise(column)), "rows meet"


@pytest.mark.full
@settings(max_examples=200, deadline=None)
@given(grid=GRIDS)
def test_the_centre_of_each_box_maps_back_to_its_cell(grid: PatchGrid):
    for cell in np.ndindex(grid.rows, grid.cols):
        x0, y0, x1, y1 = grid.box(*cell)
        if x0 < x1 and y0 < y1:  # else it lies in the padding
            assert grid.cell((x0 + x1) / 2, (y0 + y1) / 2) == cell
            assert grid.cell(x0, y0) == cell, "a box holds its start, not its end"


@settings(max_examples=200, deadline=None)
@given(grid=GRIDS, data=st.data())
def test_each_visible_point_lies_in_exactly_one_box(grid: PatchGrid, data):
    width, height = grid.transform.original_size
    x = data.draw(st.floats(0, width, exclude_max=True))
    y = data.draw(st.floats(0, height, exclude_max=True))
    holding = [
        (row, col)
        for row, col in np.ndindex(grid.rows, grid.cols)
        if grid.box(row, col)[0] <= x < grid.box(row, col)[2]
        and grid.box(row, col)[1] <= y < grid.box(row, col)[3]
    ]
    cell = grid.cell(x, y)
    assert holding == ([] if cell is None else [cell])
    left, top, right, bottom = grid.visible
    assert (cell is not None) == (left <= x < right and top <= y < bottom)


@pytest.mark.full
@settings(max_examples=60, deadline=None)
@given(grid=GRIDS)
def test_heatmap_gives_each_pixel_the_value_of_its_cell(grid: PatchGrid):
    assume(np.prod(grid.transform.original_size) <= 4000)
    values = np.arange(grid.rows * grid.cols, dtype=np.float32).reshape(grid.rows, grid.cols)
    heat = grid.heatmap(values)
    width, height = grid.transform.original_size
    assert (heat.shape, heat.dtype) == ((height, width), np.float32)
    for y, x in np.ndindex(height, width):
        cell = grid.cell(x + 0.5, y + 0.5)
        assert np.isnan(heat[y, x]) if cell is None else heat[y, x] == values[cell]


@settings(max_examples=200, deadline=None)
@given(
    size=SIZES, processor=st.sampled_from(PROCESSORS), x=st.floats(-9, 300), y=st.floats(-9, 300)
)
def test_to_processed_inverts_to_original(size, processor, x, y):
    transform = pixel_transform(size, processor)
    left, top, right, bottom = transform.to_original((x, y, x + 1, y + 1))
    assert transform.to_processed((left, top)) == pytest.approx((x, y), abs=1e-6)
    assert transform.to_processed((right, bottom)) == pytest.approx((x + 1, y + 1), abs=1e-6)


def test_cropped_parts_have_no_cell_and_no_heat():
    grid = PatchGrid(pixel_transform((64, 32), _clip(32)), 8)
    assert grid.visible == (16.0, 0.0, 48.0, 32.0)
    assert grid.cell(15.9, 5) is None
    assert grid.cell(16, 5) == (0, 0)
    assert grid.cell(48, 5) is None
    seen = ~np.isnan(grid.heatmap(np.zeros((4, 4))))
    assert seen[:, 16:48].all()
    assert seen.sum() == 32 * 32


def test_padding_gives_clipped_and_empty_boxes():
    grid = PatchGrid(pixel_transform((12, 12), _clip(12)), 8)  # 10 pixels of padding all around
    assert grid.box(0, 0) == (0.0, 0.0, 0.0, 0.0)
    assert grid.box(1, 1) == (0.0, 0.0, 6.0, 6.0)
    assert grid.box(3, 3) == (12.0, 12.0, 12.0, 12.0)
    assert grid.visible == (0.0, 0.0, 12.0, 12.0)


def test_what_is_left_over_of_the_last_patch_is_not_visible():
    grid = PatchGrid(pixel_transform((37, 20), _siglip(20, 37)), 8)
    assert (grid.rows, grid.cols, grid.visible) == (2, 4, (0.0, 0.0, 32.0, 16.0))


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_backends_pad_an_odd_number_of_pixels_differently(backend: str):
    """Torchvision's processors need torchvision itself; their rule is read from their source."""
    kind = type("Processor", (CLIPImageProcessorPil,), {"backend": backend})
    processor = kind(do_resize=False, crop_size={"height": 8, "width": 8})
    offset = pixel_transform((5, 11), processor).crop_offset
    assert offset == ((-2, 1) if backend == "pil" else (-1, 1))


def test_a_patch_outside_the_grid_is_an_error():
    grid = PatchGrid(PixelTransform((8, 8), (8, 8), (0, 0), (8, 8)), 4)
    for cell in [(2, 0), (0, 2), (-1, 0)]:
        with pytest.raises(IndexError, match=r"the grid has 2 rows and 2 columns"):
            grid.box(*cell)


@pytest.mark.parametrize("point", [(-1, 0), (0, -0.1), (64, 0), (0, 32)])
def test_a_point_outside_the_image_is_an_error(point):
    grid = PatchGrid(pixel_transform((64, 32), _clip(32)), 8)
    with pytest.raises(ValueError, match="outside of the image, which is 64 pixels wide and 32 hi"):
        grid.cell(*point)


def test_heatmap_of_another_shape_is_an_error():
    grid = PatchGrid(pixel_transform((64, 32), _clip(32)), 8)
    with pytest.raises(ValueError, match=r"expected 4 rows and 4 columns .* shape \(4, 5\)"):
        grid.heatmap(np.zeros((4, 5)))


def test_processors_that_work_otherwise_are_refused():
    with pytest.raises(ValueError, match=r"do_pad=True.*not supported"):
        pixel_transform((8, 8), CLIPImageProcessorPil(do_pad=True))
    longest = CLIPImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
    with pytest.raises(ValueError, match="longest_edge.*expected 'shortest_edge' alone"):
        pixel_transform((8, 8), longest)

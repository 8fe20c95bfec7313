"""A token map answers what each position is, and box and position are each other's inverse."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from vlm_lens.geometry import ImageLayout, PatchGrid, PixelTransform, pixel_transform
from vlm_lens.inputs import TokenMap
from vlm_lens.inputs.token_map import NO_CELL

GRID = PatchGrid(PixelTransform((60, 40), (24, 16), (0, 0), (24, 16)), 8)  # 2 rows, 3 columns


def build(grids: list[PatchGrid], *, n_padding: int = 0, n_class: int = 0) -> TokenMap:
    """Padding, a bos token, the images with a text between them, " what ?" and an answer."""
    rows = [("<pad>", "padding", "prompt", -1)] * n_padding
    rows.append(("<s>", "special", "prompt", -1))
    for index, grid in enumerate(grids):
        n_tokens = n_class + grid.rows * grid.cols
        rows += [("<image>", "image", "prompt", index)] * n_tokens
        rows.append((" and", "text", "prompt", -1))
    rows += [(token, "text", "prompt", -1) for token in (" what", " ?")]
    rows += [(" red", "text", "answer", -1)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    special = frozenset({"<s>", "</s>", "<pad>"})
    layouts = [layout_of(grid, n_class=n_class) for grid in grids]
    return TokenMap(*columns, layouts=layouts, special_tokens=special)


def layout_of(grid: PatchGrid, *, n_class: int = 0) -> ImageLayout:
    cells: list[Any] = [(0, row, col) for row, col in np.ndindex(grid.rows, grid.cols)]
    class_tokens: list[Any] = ["class"] * n_class
    return ImageLayout.of([grid], [grid], n_class=1, tokens=class_tokens + cells)


PROCESSORS = st.sampled_from(
    [
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 32, "width": 32}),
        SiglipImageProcessorPil(size={"height": 32, "width": 32}),
        SiglipImageProcessorPil(size={"height": 20, "width": 37}),
    ]
)
# What `build` takes; the maps themselves are built in the tests, as beartype draws random numbers.
PARTS = st.builds(
    lambda sizes, processor, n_padding, n_class: {
        "grids": [PatchGrid(pixel_transform(size, processor), 8) for size in sizes],
        "n_padding": n_padding,
        "n_class": n_class,
    },
    st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=3),
    PROCESSORS,
    st.integers(0, 3),
    st.integers(0, 1),
)


@pytest.mark.full
@settings(max_examples=100, deadline=None)
@given(parts=PARTS)
def test_box_and_position_are_inverse(parts: dict):
    token_map = build(**parts)
    for image in range(len(token_map.layouts)):
        for pos in token_map.positions("image", image=image):
            if token_map.cells[pos] == NO_CELL:
                continue
            x0, y0, x1, y1 = token_map.box(pos)
            if x0 < x1 and y0 < y1:  # else it lies in the padding
                assert token_map.position((x0 + x1) / 2, (y0 + y1) / 2, image=image) == pos


@settings(max_examples=100, deadline=None)
@given(parts=PARTS, data=st.data())
def test_a_point_lies_in_the_box_of_its_position(parts: dict, data):
    token_map = build(**parts)
    image = data.draw(st.integers(0, len(token_map.layouts) - 1))
    width, height = token_map.grid(image=image).transform.original_size
    x = data.draw(st.floats(0, width, exclude_max=True))
    y = data.draw(st.floats(0, height, exclude_max=True))
    pos = token_map.position(x, y, image=image)
    if pos is None:
        assert token_map.grid(image=image).cell(x, y) is None
    else:
        x0, y0, x1, y1 = token_map.box(pos)
        assert x0 <= x < x1
        assert y0 <= y < y1
        assert token_map.image_index[pos] == image


@pytest.mark.full
@settings(max_examples=100, deadline=None)
@given(parts=PARTS, data=st.data())
def test_positions_in_a_box_are_those_of_its_points(parts: dict, data):
    token_map = build(**parts)
    image = data.draw(st.integers(0, len(token_map.layouts) - 1))
    width, height = token_map.grid(image=image).transform.original_size
    x0, x1 = sorted(data.draw(st.tuples(st.integers(0, width), st.integers(0, width + 9))))
    y0, y1 = sorted(data.draw(st.tuples(st.integers(0, height), st.integers(0, height + 9))))
    if x0 == x1 or y0 == y1:
        with pytest.raises(ValueError, match="expected a box"):
            token_map.positions_in((x0, y0, x1, y1), image=image)
        return
    found = token_map.positions_in((x0, y0, x1, y1), image=image)
    # Patches that overlap a box do so at one of these points, between any two edges.
    places = token_map.positions("image", image=image)
    boxes = [token_map.box(pos) for pos in places if token_map.cells[pos] != NO_CELL]
    xs = between({x0, x1, *(x for box in boxes for x in box[::2])}, x0, min(x1, width))
    ys = between({y0, y1, *(y for box in boxes for y in box[1::2])}, y0, min(y1, height))
    points = {token_map.position(x, y, image=image) for x in xs for y in ys}
    assert found == sorted(points - {None})


def between(edges: set[float], low: float, high: float) -> list[float]:
    """A point between any two neighbours among some edges, within a range."""
    inside = sorted(edge for edge in edges if low <= edge <= high)
    return [(a + b) / 2 for a, b in pairwise(inside)]


@settings(max_examples=50, deadline=None)
@given(parts=PARTS)
def test_kinds_split_the_positions(parts: dict):
    token_map = build(**parts)
    everything = list(range(len(token_map)))
    modalities: list[Any] = ["image", "audio", "text", "special", "padding"]
    assert sorted(sum((token_map.positions(m) for m in modalities), [])) == everything
    roles: list[Any] = ["prompt", "answer", "padding"]
    assert sorted(sum((token_map.positions(r) for r in roles), [])) == everything
    for kind in modalities + roles:
        assert token_map.mask(kind).nonzero().flatten().tolist() == token_map.positions(kind)
    of_images = [token_map.positions("image", image=i) for i in range(len(token_map.layouts))]
    assert sum(of_images, []) == token_map.positions("image")


def test_positions():
    token_map = build([GRID, GRID], n_padding=2)
    assert token_map.positions("padding") == [0, 1]
    assert token_map.positions("special") == [2]
    assert token_map.positions("image", image=1) == [10, 11, 12, 13, 14, 15]
    assert token_map.positions("text") == [9, 16, 17, 18, 19]
    assert token_map.positions("answer") == [19]
    assert token_map.positions("prompt") == list(range(2, 19))
    assert token_map.mask("image", image=0).tolist() == [False] * 3 + [True] * 6 + [False] * 11


def test_cells_and_boxes_count_from_the_end_too():
    token_map = build([GRID])
    assert len(token_map) == 11
    assert token_map.cell(1) == token_map.cell(-10) == (0, 0)
    assert token_map.box(6) == token_map.box(-5) == (40.0, 20.0, 60.0, 40.0)


def test_values_become_a_grid_and_a_heatmap():
    token_map = build([GRID, GRID], n_class=1)
    everything = torch.arange(len(token_map), dtype=torch.bfloat16)
    positions = token_map.positions("image", image=1)
    expected = [[10, 11, 12], [13, 14, 15]]
    for values in (everything, everything[positions], everything[positions].tolist()):
        assert token_map.grid_values(values, image=1).tolist() == expected
    heat = token_map.heatmap(everything.requires_grad_(), image=1)
    assert heat.shape == (40, 60)
    assert (heat[0, 0], heat[39, 59]) == (10, 15)


def test_extend():
    token_map = build([GRID]).extend([" blue", "</s>"])
    assert len(token_map) == 13
    assert token_map.tokens[-2:] == [" blue", "</s>"]
    assert token_map.modality[-2:] == ["text", "special"]
    assert token_map.positions("answer") == [10, 11, 12]
    assert token_map.box(1) == build([GRID]).box(1)


def test_dataframe():
    frame = build([GRID], n_padding=1).to_dataframe()
    assert frame.shape == (12, 11)
    assert frame.index.name == "position"
    assert frame.loc[7, ["token", "modality", "role"]].tolist() == ["<image>", "image", "prompt"]
    assert frame.loc[7, ["image", "view", "row", "col", "x0"]].tolist() == [0, 0, 1, 2, 40.0]
    assert frame.loc[0, ["image", "view", "row", "col"]].tolist() == [-1, -1, -1, -1]
    assert frame["x0"].isna().to_numpy().sum() == 6


def test_dataframe_without_images():
    assert build([]).to_dataframe()["x0"].isna().to_numpy().all()


def test_repr():
    assert repr(build([GRID, GRID], n_padding=2)) == (
        "TokenMap(20 positions: 12 image (2x3, 2x3), 5 text, 1 special, 2 padding; 1 answer)"
    )


@pytest.mark.parametrize("pos", [11, -12])
def test_a_position_out_of_range_is_an_error(pos: int):
    with pytest.raises(IndexError, match=rf"position {pos} is out of range: .* 0 to 10, or -11"):
        build([GRID]).box(pos)


@pytest.mark.parametrize(
    ("pos", "what"),
    [
        (0, "special token '<s>' of the prompt; image positions lie from 1 to 7"),
        (1, "a class token of image 0"),
        (-1, "text token ' red' of the answer"),
    ],
)
def test_the_box_of_another_position_is_an_error_that_names_it(pos: int, what: str):
    with pytest.raises(ValueError, match=f"shows no image patch: it is .*{what}"):
        build([GRID], n_class=1).box(pos)


def test_the_box_of_a_position_without_any_image():
    with pytest.raises(ValueError, match="and the sample has no image"):
        build([]).cell(0)


def test_another_image_is_an_error():
    token_map = build([GRID])
    for call in (token_map.heatmap, token_map.grid_values):
        with pytest.raises(IndexError, match=r"there is no image 1: the sample has 1 image"):
            call([1.0], image=1)
    with pytest.raises(IndexError, match="there is no image -1"):
        token_map.position(0, 0, image=-1)
    with pytest.raises(IndexError, match="there is no image 2"):
        token_map.positions("image", image=2)


def test_a_point_outside_the_image_is_an_error():
    with pytest.raises(ValueError, match="x=60, y=0 lies outside of the image, which is 60 pixels"):
        build([GRID]).position(60, 0)


@pytest.mark.parametrize("length", [5, 12])
def test_values_of_another_length_are_an_error(length: int):
    expected = (
        rf"one value per position \(11\) or one per position of image 0 \(6\), got .*{length}"
    )
    with pytest.raises(ValueError, match=expected):
        build([GRID]).heatmap(torch.zeros(length))


def test_image_goes_with_image_positions_only():
    with pytest.raises(ValueError, match="image=0 goes with kind 'image' only, not with 'text'"):
        build([GRID]).positions("text", image=0)


@pytest.mark.usefixtures("unchecked")
def test_wrong_types():
    with pytest.raises(ValueError, match="unknown kind 'images' of position: expected one of"):
        build([GRID]).positions("images")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="expected a list of tokens, got the str ' red'"):
        build([GRID]).extend(" red")
    with pytest.raises(ValueError, match=r"got shape \(1, 11\)"):
        build([GRID]).grid_values(np.zeros((1, 11)))


@pytest.mark.usefixtures("unchecked")
def test_a_map_that_contradicts_itself_is_an_error():
    token_map = build([GRID])
    with pytest.raises(ValueError, match="one entry per position in every list, got .*'role': 1"):
        replace(token_map, role=["prompt"])
    with pytest.raises(ValueError, match=r"unknown modality \['video'\]"):
        replace(token_map, modality=["video"] * 11)
    with pytest.raises(ValueError, match="position 0 is special with image_index 0: expected -1"):
        replace(token_map, image_index=[0] * 11)
    with pytest.raises(ValueError, match="image 0 has 6 positions, but its layout has 7 tokens"):
        replace(token_map, layouts=[layout_of(GRID, n_class=1)])

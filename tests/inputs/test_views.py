"""Images of several views, and tokens without a place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.families.base import picture
from tests.geometry.families import LAYOUTS, built
from tests.inputs.test_families import run
from vlm_lens.geometry import ImageLayout, PatchGrid, PixelTransform
from vlm_lens.inputs import Inputs, TokenMap

WHOLE = PatchGrid(PixelTransform((40, 20), (16, 16), (0, 0), (16, 16)), 8)  # 2 x 2 of 20 x 10
RIGHT = PatchGrid(PixelTransform((40, 20), (32, 16), (16, 0), (16, 16)), 4)  # 4 x 4 of 5 x 5

FIRST_MLP = (
    *("encoder.layers.0.mlp", "encoder.layer.0.mlp", "blocks.0.mlp"),
    *("transformer.layers.0.mlp", "transformer.layers.0.feed_forward"),
)


def build(tokens: list[Any] | None = None, grids: tuple[PatchGrid, ...] = (WHOLE, RIGHT)):
    """A bos token and an image that becomes `tokens`, or a thumbnail and one tile."""
    views = [PatchGrid(grid.transform, 4) for grid in (WHOLE, RIGHT)]
    layout = ImageLayout.of(views, grids, n_class=1, tokens=tokens)
    n = len(layout.tokens)
    modality: list[Any] = ["special"] + ["image"] * n
    return TokenMap(
        tokens=["<s>"] + ["<image>"] * n,
        modality=modality,
        role=["prompt"] * (n + 1),
        image_index=[-1] + [0] * n,
        layouts=[layout],
        special_tokens=frozenset({"<s>"}),
    )


def test_a_box_is_looked_for_in_all_views_or_one():
    token_map = build()
    assert token_map.positions_in((39, 19, 40, 20)) == [4, 20]
    assert token_map.positions_in((39, 19, 40, 20), view=1) == [20]
    assert token_map.positions_in((0, 0, 20, 10), view=1) == []
    with pytest.raises(IndexError, match="there is no view 2"):
        token_map.positions_in((0, 0, 1, 1), view=2)


def test_positions_of_a_view():
    token_map = build()
    assert repr(token_map) == "TokenMap(21 positions: 20 image (2x2 + 4x4), 1 special)"
    assert token_map.positions("image", view=0) == [1, 2, 3, 4]
    assert token_map.positions("image", image=0, view=1) == list(range(5, 21))
    assert token_map.view_index == [-1] + [0] * 4 + [1] * 16
    assert token_map.cells[4:6] == [(1, 1), (0, 0)]
    assert token_map.mask("image", view=0).sum() == 4
    with pytest.raises(ValueError, match="view=0 goes with kind 'image' only, not with 'text'"):
        token_map.positions("text", view=0)


def test_a_point_is_shown_by_the_view_with_the_smallest_patches_by_default():
    token_map = build()
    assert token_map.position(1, 1) == 1
    assert token_map.position(21, 1) == 5
    assert token_map.position(21, 1, view=0) == 2
    assert token_map.position(1, 1, view=1) is None
    assert token_map.box(2) == (20.0, 0.0, 40.0, 10.0)
    assert token_map.box(5) == (20.0, 0.0, 25.0, 5.0)


def test_values_of_a_view_are_those_of_the_whole_image_by_default():
    token_map = build()
    values = torch.arange(21)
    assert token_map.grid() is token_map.layouts[0].grids[0]
    assert token_map.grid_values(values).tolist() == [[1, 2], [3, 4]]
    assert token_map.grid_values(values[1:], view=1)[0].tolist() == [5, 6, 7, 8]
    with pytest.raises(IndexError, match=r"there is no view 2: image 0 has 2 views"):
        token_map.grid_values(values, view=2)


def test_heatmaps_merge_the_views():
    token_map = build()
    values = np.arange(21.0)
    detail, mean = token_map.heatmap(values), token_map.heatmap(values, merge="mean")
    assert (detail[0, 0], detail[0, 20], detail[19, 39]) == (1, 5, 20)
    assert (mean[0, 0], mean[0, 20], mean[19, 39]) == (1, 3.5, 12)
    values[5] = np.nan  # not shown, so the thumbnail is
    assert token_map.heatmap(values)[0, 20] == 2
    assert token_map.heatmap(values, merge="mean")[0, 20] == 2


@pytest.mark.usefixtures("unchecked")
def test_another_way_to_merge_is_an_error():
    with pytest.raises(ValueError, match="unknown merge 'max': expected 'detail' or 'mean'"):
        build().heatmap(np.zeros(21), merge="max")  # pyright: ignore[reportArgumentType]


def test_patches_of_the_encoder():
    token_map = build(["query"] * 3, grids=())
    assert token_map.patch_box(1) == token_map.patch_box(-16) == (0.0, 0.0, 10.0, 5.0)
    assert token_map.patch_box(1, view=1) == (20.0, 0.0, 25.0, 5.0)
    assert token_map.patch_box(-1, view=1) == (35.0, 15.0, 40.0, 20.0)
    values = torch.arange(2 * 17).reshape(2, 17)
    heat = token_map.patch_heatmap(values)
    assert (heat[0, 0], heat[0, 20], heat[19, 39]) == (1, 18, 33)
    assert np.array_equal(token_map.patch_heatmap(values.flatten()), heat)
    with pytest.raises(IndexError, match="no patch 0: those of the encoder are 1 to 16"):
        token_map.patch_box(0)
    with pytest.raises(IndexError, match="no view 2: the encoder sees 2 of image 0"):
        token_map.patch_box(1, view=2)


def test_queries_are_mapped_to_the_image_through_their_attention():
    token_map = build(["query"] * 3, grids=())
    weights = torch.zeros(3, 2 * 17)
    weights[0, 1] = weights[2, 18] = 1  # the first patch of each view
    for values in (torch.tensor([9.0, 2, 3, 4]), torch.tensor([2.0, 3, 4])):
        heat = token_map.through(values, weights)
        assert (heat[0, 0], heat[0, 20], heat[19, 39]) == (2, 4, 0)
    with pytest.raises(ValueError, match=r"weights of 3 queries \(rows\) .*shape \(2, 34\)"):
        token_map.through(torch.zeros(3), weights[:2])


@pytest.mark.parametrize(
    ("token", "what"),
    [
        ("class", "it is a class token of image 0, which shows all of it"),
        ("newline", "it is the newline behind a row of patches of image 0"),
        ("query", "it is a query of image 0, .* attention weights .* see TokenMap.through"),
        ("cross_attention", "it stands for image 0, which the text reads by cross-attention"),
    ],
)
def test_a_token_without_a_place_says_what_it_is(token: str, what: str):
    with pytest.raises(ValueError, match=f"position 1 shows no image patch: {what}"):
        build([token], grids=()).box(1)


def test_without_any_grid_there_is_no_heatmap_of_positions():
    token_map = build(["query"] * 3, grids=())
    calls = [
        lambda: token_map.heatmap(np.zeros(3)),
        lambda: token_map.grid_values(np.zeros(3), view=0),
        lambda: token_map.position(1, 1),
        token_map.grid,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="the tokens of this image lie on no grid: they are q"):
            call()


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "idefics3", "internvl"])
def test_the_rows_of_an_image_among_the_encoder_views(name: str):
    media = [picture(0, size=(90, 40)), [picture(1, size=(34, 66)), picture(2, size=(30, 30))]]
    inputs = run(name, media, ["what ?", "is the square red ?"])
    rows = [inputs.view_rows(), inputs.view_rows(sample=1), inputs.view_rows(sample=1, image=1)]
    assert rows[0].start == 0
    assert [row.stop for row in rows[:2]] == [row.start for row in rows[1:]]
    assert _encoder_shape(name, inputs)[0] == rows[-1].stop


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_encoder_has_as_many_positions_as_the_layout_says(name: str):
    """Qwen-VL has all views in one row, and Mllama all of an image's tiles, filled up."""
    inputs = run(name, picture(0, size=(50, 34)))
    layout = inputs.token_map[0].layouts[0]
    shape = _encoder_shape(name, inputs)
    if name == "mllama":
        assert shape[1] == 4 * (layout.n_positions + -layout.n_positions % 8)
    else:
        assert shape[:-1].numel() == len(layout.views) * layout.n_positions


def _encoder_shape(name: str, inputs: Inputs) -> torch.Size:
    """The shape of what the MLP of the encoder's first block gives."""
    hf, _ = built(name)
    module = next(module for path, module in hf.named_modules() if path.endswith(FIRST_MLP))
    shapes: list[torch.Size] = []
    with module.register_forward_hook(lambda _m, _args, output: shapes.append(output.shape)):
        hf(**inputs)
    return shapes[0]

"""A mosaic's cells show what the pixels of the heat maps show, in every family."""

from __future__ import annotations

import numpy as np
import pytest

from tests.geometry.families import WITH_GRIDS
from tests.inputs.test_families import medium, run
from tests.inputs.test_views import build
from vlm_lens.plots.mosaic import Mosaic


def at_pixels(mosaic: Mosaic, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The values at the centres of an image's pixels."""
    rows, cols = (
        np.searchsorted(edges, np.arange(n) + 0.5, side="right") - 1
        for edges, n in ((mosaic.y, shape[0]), (mosaic.x, shape[1]))
    )
    inside = np.ix_(
        (rows >= 0) & (rows < mosaic.entries.shape[0]),
        (cols >= 0) & (cols < mosaic.entries.shape[1]),
    )
    found = np.full(shape, np.nan)
    rows, cols = np.clip(rows, 0, None), np.clip(cols, 0, None)
    spread = np.pad(mosaic.spread(values), ((0, 1), (0, 1)), constant_values=np.nan)
    found[inside] = spread[np.ix_(rows, cols)][inside]
    return found


@pytest.mark.parametrize("name", WITH_GRIDS)
def test_cells_of_positions_are_those_of_the_heat_map(name):
    token_map = run(name, medium(name)).token_map[0]
    values = np.random.default_rng(0).standard_normal(len(token_map))
    heat = token_map.heatmap(values)
    np.testing.assert_allclose(
        at_pixels(Mosaic.of_tokens(token_map), values, heat.shape), heat, rtol=1e-6
    )


@pytest.mark.parametrize("name", [*WITH_GRIDS, "mllama", "blip2-opt"])
def test_cells_of_patches_are_those_of_the_heat_map(name):
    token_map = run(name, medium(name)).token_map[0]
    layout = token_map.layouts[0]
    n = len(layout.views) * layout.n_positions
    values = np.random.default_rng(0).standard_normal(n)
    heat = token_map.patch_heatmap(values)
    np.testing.assert_allclose(
        at_pixels(Mosaic.of_patches(token_map, n), values, heat.shape), heat, rtol=1e-6
    )


def test_one_view_is_that_view_alone():
    token_map = build()
    mosaic = Mosaic.of_patches(token_map, 17, view=1)  # 4 x 4 of 5 x 5 pixels, behind a class token
    assert mosaic.x.tolist() == [20, 25, 30, 35, 40]
    assert mosaic.entries.tolist() == np.arange(1, 17).reshape(4, 4).tolist()
    assert Mosaic.of_patches(token_map, 16, view=1).entries[0, 0] == 0
    with pytest.raises(ValueError, match="expected 16 values, one for each patch of one view, or"):
        Mosaic.of_patches(token_map, 15, view=1)
    with pytest.raises(IndexError, match="there is no view 2: the encoder sees 2 of image 0"):
        Mosaic.of_patches(token_map, 17, view=2)


def test_details_lie_over_the_view_of_the_whole():
    mosaic = Mosaic.of_tokens(build())
    assert mosaic.x.tolist() == [0, 20, 25, 30, 35, 40]
    assert mosaic.entries[:, 0].tolist() == [1, 1, 3, 3]
    assert mosaic.entries[0].tolist() == [1, 5, 6, 7, 8]
    assert mosaic.box(1) == (0, 0, 20, 10)
    assert set(mosaic.shown) == {1, 3, *range(5, 21)}
    with pytest.raises(ValueError, match="entry 2 is not shown"):
        mosaic.box(2)
    assert mosaic.cells()[1, 2].tolist() == [10, 25, 5, 30, 10]


def test_tokens_without_a_place_have_no_mosaic():
    token_map = run("blip2-opt", medium("blip2-opt")).token_map[0]
    with pytest.raises(ValueError, match="lie on no grid"):
        Mosaic.of_tokens(token_map)

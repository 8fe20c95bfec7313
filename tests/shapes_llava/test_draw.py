"""Drawing: what is on the pixels is what the annotation says."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_lens.shapes_llava.draw import draw_images, draw_windows, locate_objects
from vlm_lens.shapes_llava.scenes import CELL, Scene, sample_scene
from vlm_lens.shapes_llava.words import SHAPES

SEEDS = st.integers(0, 2**32)


def scene_of(seed: int) -> Scene:
    return sample_scene(Random(seed), split=("train", "val", "test")[seed % 3])


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_box_is_tight_around_the_mask(seed: int) -> None:
    for drawing in locate_objects(scene_of(seed)):
        x0, y0, x1, y1 = drawing.box
        inside = drawing.mask[y0:y1, x0:x1]
        assert 0 <= x0 < x1 <= 64
        assert 0 <= y0 < y1 <= 64
        assert inside.sum() == drawing.mask.sum() > 15
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_objects_stay_in_their_cells(seed: int) -> None:
    scene = scene_of(seed)
    drawings = locate_objects(scene)
    for thing, drawing in zip(scene.objects, drawings, strict=True):
        x0, y0, x1, y1 = drawing.box
        column, row = thing.place % 3, thing.place // 3
        slack = 2.5  # a turned digit may lean a little over the border of its cell
        assert x0 >= column * CELL - slack
        assert x1 <= (column + 1) * CELL + slack
        assert y0 >= row * CELL - slack
        assert y1 <= (row + 1) * CELL + slack
    assert np.sum([d.mask for d in drawings], axis=0).max() <= 1, "objects never overlap"


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_patches_count_the_pixels_of_the_mask(seed: int) -> None:
    for drawing in locate_objects(scene_of(seed)):
        for row in range(8):
            for column in range(8):
                patch = drawing.mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                assert drawing.patch_fraction[row, column] == pytest.approx(patch.sum() / 64)


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_masked_pixels_have_the_colour_of_the_object(seed: int) -> None:
    scene = scene_of(seed)
    image = draw_images([scene])[0].astype(float)
    alpha, corners = draw_windows(scene.objects)
    for thing, ink, (x, y) in zip(scene.objects, alpha, corners, strict=True):
        solid = image[y : y + 24, x : x + 24][ink > 0.98]
        if len(solid) >= 10:
            assert np.abs(np.median(solid, axis=0) - thing.pose.rgb).max() < 12


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_pixels_outside_the_objects_are_background(seed: int) -> None:
    scene = scene_of(seed)
    image = draw_images([scene])[0].astype(float)
    free = np.ones((64, 64), dtype=bool)
    alpha, corners = draw_windows(scene.objects)
    for ink, (x, y) in zip(alpha, corners, strict=True):
        free[y : y + 24, x : x + 24] &= ink == 0
    offset = np.abs(image[free] - np.clip(scene.background, 0, 255))
    assert np.median(offset) < 25
    assert offset.max() < 24 + 5 * 7


def test_a_batch_is_drawn_like_its_scenes_one_by_one() -> None:
    scenes = [scene_of(seed) for seed in range(12)]
    single = np.concatenate([draw_images([scene]) for scene in scenes])
    assert np.array_equal(draw_images(scenes), single)


def test_drawing_is_repeatable_and_scenes_look_different() -> None:
    scenes = [scene_of(seed) for seed in range(4)]
    assert np.array_equal(draw_images(scenes), draw_images(scenes))
    assert not np.array_equal(draw_images(scenes[:1]), draw_images(scenes[1:2]))


def test_shapes_have_the_area_that_geometry_gives_them() -> None:
    """Areas of the five shapes over the squared radius, against the drawn coverage."""
    star = 5 * 0.45 * np.sin(np.pi / 5)
    cross = 4 * (2 * 0.94 * 0.3 - 0.3**2)
    area = {"circle": np.pi, "square": 1.6**2, "triangle": 0.75 * 3**0.5, "star": star}
    area["cross"] = cross
    rng, seen = Random(0), set()
    while seen != set(SHAPES):
        objects = [o for o in sample_scene(rng).objects if o.kind == "shape"]
        if objects:
            for thing, ink in zip(objects, draw_windows(objects)[0], strict=True):
                expected = area[thing.name] * thing.pose.radius**2
                assert ink.sum() == pytest.approx(expected, rel=0.06)
                seen.add(thing.name)

"""Scenes: contents within the rules, splits that share nothing, the same seed the same scene."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from vlm_lens.shapes_llava.digits import SPLITS, digit_glyphs, digit_indices
from vlm_lens.shapes_llava.scenes import MAX_OBJECTS, sample_scene, split_of
from vlm_lens.shapes_llava.words import COLORS, DIGITS, NAMES, PLACES, vocabulary


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), split=st.sampled_from(SPLITS))
def test_scene_follows_the_rules(seed: int, split: str) -> None:
    scene = sample_scene(Random(seed), split=split)
    pairs = [(thing.color, thing.name) for thing in scene.objects]
    places = [thing.place for thing in scene.objects]
    assert 1 <= len(pairs) <= MAX_OBJECTS
    assert len(set(pairs)) == len(pairs)
    assert places == sorted(set(places))
    assert all(color in COLORS and name in NAMES for color, name in pairs)
    assert all(0 <= place < len(PLACES) for place in places)
    assert split_of(scene.description) == split


@pytest.mark.full
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), split=st.sampled_from(SPLITS))
def test_digits_show_what_they_are_called_and_stay_in_their_split(seed: int, split: str) -> None:
    target = load_digits().target
    for thing in sample_scene(Random(seed), split=split).objects:
        if thing.digit_image is None:
            assert thing.kind == "shape"
            assert thing.name not in DIGITS
        else:
            assert thing.kind == "digit"
            assert str(target[thing.digit_image]) == thing.name
            assert thing.digit_image in digit_indices(split)[int(thing.name)]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_same_seed_gives_the_same_scene(seed: int) -> None:
    assert sample_scene(Random(seed)) == sample_scene(Random(seed))


def test_scenes_differ_between_seeds() -> None:
    assert sample_scene(Random(1)) != sample_scene(Random(2))


def test_digit_images_are_split_without_overlap() -> None:
    parts = {split: {i for row in digit_indices(split) for i in row} for split in SPLITS}
    assert set.union(*parts.values()) == set(range(len(load_digits().target)))
    assert sum(len(part) for part in parts.values()) == len(load_digits().target)
    for split in SPLITS:
        sizes = [len(row) for row in digit_indices(split)]
        assert max(sizes) - min(sizes) <= 8, "stratified: every class has its share"


def test_scene_contents_are_split_without_overlap() -> None:
    rng = Random(0)
    contents = {
        split: {sample_scene(rng, split=split).description for _ in range(300)} for split in SPLITS
    }
    assert not contents["train"] & contents["test"]
    assert not contents["train"] & contents["val"]
    assert not contents["val"] & contents["test"]


def test_training_scenes_cover_numbers_kinds_and_repeats() -> None:
    rng = Random(0)
    scenes = [sample_scene(rng) for _ in range(800)]
    sizes = np.bincount([len(scene.objects) for scene in scenes], minlength=5)[1:]
    assert sizes.min() > 150
    digits = [thing.kind == "digit" for scene in scenes for thing in scene.objects]
    assert 0.3 < np.mean(digits) < 0.45
    most = [max(sum(o.color == c for o in s.objects) for c in COLORS) for s in scenes]
    assert {1, 2, 3, 4} <= set(most)


def test_number_of_objects_can_be_fixed() -> None:
    assert len(sample_scene(Random(0), n_objects=3).objects) == 3


@pytest.mark.parametrize("n_objects", [0, 5, -1])
def test_impossible_number_of_objects_is_refused(n_objects: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 4, got {n_objects}"):
        sample_scene(Random(0), n_objects=n_objects)


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="'train', 'val', 'test'.*got 'dev'"):
        sample_scene(Random(0), split="dev")
    with pytest.raises(ValueError, match="got 'dev'"):
        digit_indices("dev")


def test_glyphs_keep_the_ink_of_the_images() -> None:
    glyphs, images = digit_glyphs(), load_digits().images / 16
    assert glyphs.shape == (1797, 48, 48)
    coarse = glyphs[:, 8:40, 8:40].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
    assert np.corrcoef(coarse.ravel(), images.ravel())[0, 1] > 0.97
    assert np.abs(glyphs[:, :4]).max() < 0.1, "the margin is empty but for the ringing"


def test_vocabulary_is_small_and_starts_with_the_special_tokens() -> None:
    vocab = vocabulary()
    assert list(vocab.values()) == list(range(len(vocab)))
    assert list(vocab)[:5] == ["<pad>", "<bos>", "<eos>", "<unk>", "<image>"]
    assert len(vocab) < 100

"""Pairs differ in one object, and in nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_lens import HookedVLM
from vlm_lens.teaching import make_pairs


@pytest.mark.parametrize(("what", "answers"), [("color", "red blue"), ("shape", "circle square")])
def test_a_pair_differs_where_its_object_is_and_the_model_sees_it(
    shapes: HookedVLM, what: str, answers: str
):
    pairs = make_pairs(what, n=4)
    for clean, corrupted in zip(pairs.clean, pairs.corrupted, strict=True):
        differs = (np.array(clean) != np.array(corrupted)).any(-1)
        rows, columns = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
        assert 0 < np.ptp(rows) < 22  # an object fits into a third of the picture
        assert np.ptp(columns) < 22
    first, second = answers.split()
    for pictures, answer in [(pairs.clean, first), (pairs.corrupted, second)]:
        prompts = shapes.prepare(images=pictures, text=pairs.questions)
        assert shapes.generate(prompts) == [answer] * 4


def test_the_same_seed_draws_the_same_pairs():
    again = [make_pairs("color", n=2, seed=seed) for seed in (3, 3, 4)]
    arrays = [np.array(pairs.clean[1]) for pairs in again]
    assert np.array_equal(arrays[0], arrays[1])
    assert not np.array_equal(arrays[0], arrays[2])


@pytest.mark.parametrize(("what", "n", "says"), [("size", 1, "'size'"), ("color", 0, "at least 1")])
def test_what_cannot_be_drawn_is_refused(what: str, n: int, says: str):
    with pytest.raises(ValueError, match=says):
        make_pairs(what, n=n)

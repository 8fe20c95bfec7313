"""The fast tier leaves nothing out as a whole."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tests.tiers import CORNERS, beyond_the_corners

ONLY_FULL = {
    "test_explorer_live.py",  # starts Jupyter
    "test_gallery.py",  # builds the page of all figures
    "test_memory.py",  # counts what is kept over hundreds of samples
}


def test_every_file_has_tests_in_the_fast_tier(request: pytest.FixtureRequest):
    is_fast = defaultdict(list)
    for item in request.session.items:
        is_fast[Path(item.path).name].append(item.get_closest_marker("full") is None)
    whole = {name for name, each in is_fast.items() if not any(each)}
    selected = any("::" in argument for argument in request.config.args)
    assert whole <= ONLY_FULL or selected


@pytest.mark.parametrize(
    ("cases", "full"),
    [
        ([("mllama",), ("gemma3",), ("llama",)], [False, True, False]),
        ([("gemma3",), ("kosmos2",)], [False, True]),
        ([(1, "x"), (2, "y")], [False, False]),
        ([(("gemma3", "text"),), (("mllama", "image"),)], [True, False]),
        ([()], [False]),
    ],
)
def test_a_family_that_is_no_corner_is_for_the_full_tier(cases, full):
    assert beyond_the_corners(cases) == full


@pytest.mark.sampled
@pytest.mark.parametrize("number", [1, 2, 3])
def test_of_a_sampled_test_the_first_case_is_fast(request: pytest.FixtureRequest, number: int):
    assert (request.node.get_closest_marker("full") is None) == (number == 1)


@pytest.mark.parametrize("name", sorted(CORNERS))
def test_corners_are_fast(request: pytest.FixtureRequest, name: str):
    assert request.node.get_closest_marker("full") is None

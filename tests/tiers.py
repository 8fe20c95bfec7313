"""Two tiers of tests: `make test` runs the fast one, `make check` both.

A test belongs to the full tier where it says so: with `@pytest.mark.full`, or, in all but its first
case, with `@pytest.mark.sampled`. It belongs there, too, where it is about a family, or a pairing
of tower and text model, that is no corner, and runs on a corner too. A test that knows no corner
keeps its first case in the fast tier: what is parametrised there is never left out as a whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import pytest

from tests.families import ALL_MODELS
from tests.tiny import TINY

CORNERS = {
    # Tiles of several sizes; an encoder with a decoder behind a Q-Former; a packed tower;
    # cross-attention; a language model alone, and one with weights the other way round; a tower.
    *("llava_next", "instructblip-t5", "qwen2_5_vl", "mllama"),
    *("llama", "gpt2", "clip-tower"),
    *("clip-llama", "siglip-qwen2"),
}
SLOW_EXAMPLES = {
    *("against_artefacts", "against_baselines", "by_component", "by_clip", "find_collapse"),
}
"""Public functions whose docstrings take seconds; each file keeps another one."""

_OTHERS = {*ALL_MODELS, *TINY} - CORNERS


def beyond_the_corners(cases: Sequence[Sequence[Any]]) -> list[bool]:
    """Which cases of one test are for the full tier.

    Args:
        cases: for each case, the values of its parameters.

    Example:
        >>> beyond_the_corners([("mllama", 1), ("gemma3", 1), (("kosmos2", "text"),)])
        [False, True, True]
        >>> beyond_the_corners([("gemma3",), ("kosmos2",)])
        [False, True]
    """
    others = [not _OTHERS.isdisjoint(_flat(values)) for values in cases]
    return [False, *others[1:]] if all(others) else others


def mark(items: Iterable[pytest.Item]) -> None:
    """Gives the marker ``full`` to tests beyond the corners, and to examples that are slow."""
    tests: dict[Hashable, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.DoctestItem) and item.name.rpartition(".")[2] in SLOW_EXAMPLES:
            item.add_marker(pytest.mark.full)
        tests[item.parent, getattr(item, "originalname", item.name)].append(item)
    for cases in tests.values():
        given = [tuple(_parameters(case).values()) for case in cases]
        n_fast = 0
        for case, is_full in zip(cases, beyond_the_corners(given), strict=True):
            if is_full or (n_fast and case.get_closest_marker("sampled")):
                case.add_marker(pytest.mark.full)
            else:
                n_fast += 1


def _parameters(item: pytest.Item) -> dict[str, Any]:
    callspec = getattr(item, "callspec", None)
    return {} if callspec is None else callspec.params


def _flat(values: Any) -> set[Hashable]:
    """The values, and those inside of tuples."""
    found: set[Hashable] = set()
    for value in values:
        if isinstance(value, tuple):
            found |= _flat(value)
        elif isinstance(value, str):
            found.add(value)
    return found

"""A room imports only from rooms below it, and no two files import each other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.imports import imports, modules, room

ROOMS = (
    *("hooks", "architectures", "inputs", "model", "neurons", "results", "passes", "edits"),
    *(
        "masking",
        "statistics",
        "plots",
        "pages",
        "experiments",
        "studies",
        "analyses",
        "report",
        "explorer",
        "cli",
    ),
    "teaching",
)
"""From the ground up."""


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Some circle, from one node back to it; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_found():
    assert circle({"a": ["b"], "b": ["c"], "c": []}) == []
    assert set(circle({"a": ["b"], "b": ["c"], "c": ["a"]})) == {"a", "b", "c"}


def test_imports_are_read_wherever_they_are():
    found = imports()
    assert "vlm_lens.plots.collapse_curve" in found["vlm_lens.analyses.critical"]
    assert "vlm_lens.analyses.critical" in found["vlm_lens.report.words"]  # for types alone
    assert "vlm_lens.hooks.wired" in found["vlm_lens.hooks.tap"]
    assert len(modules()) == len(found) > 200


def test_no_files_import_each_other():
    assert circle(imports()) == []


def test_no_rooms_import_each_other():
    between: dict[str, set[str]] = {}
    for name, others in imports().items():
        between.setdefault(room(name), set()).update(map(room, others))
    assert circle({name: others - {name} for name, others in between.items()}) == []


@pytest.mark.parametrize("upper", ROOMS)
def test_a_room_knows_no_room_above_it(upper: str):
    above = ROOMS[ROOMS.index(upper) + 1 :]
    wrong = [
        (name, other)
        for name, others in imports().items()
        for other in others
        if room(name) == upper and room(other) in above
    ]
    assert wrong == []

"""`study`: what it declares of a function, and which functions it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from vlm_lens.passes import Run
from vlm_lens.studies import study

FIELDS: dict[str, Any] = {"title": "Widths", "paper": "none", "n": 3}


def test_a_study_is_its_function_and_what_is_declared() -> None:
    def widths(model: Any, samples: Any, *, run: Run = Run()) -> str:  # noqa: B008
        return "found"

    declared = study("widths", **FIELDS, needs=["answers"])(widths)
    assert declared is widths
    assert declared(None, []) == "found"
    expected = {"name": "widths", **FIELDS, "task": "image", "needs": ("answers",), "check": None}
    assert declared.__dict__["study"] == expected


@pytest.mark.parametrize("name", ["Widths", "two words", "", "1st", "a_b", "widths\n"])
def test_names_are_words_of_a_command(name: str) -> None:
    with pytest.raises(ValueError, match="expected the name of a study in small letters"):
        study(name, **FIELDS)


@pytest.mark.usefixtures("unchecked")
def test_needs_are_known() -> None:
    wrong: Any = ["images", "sounds"]
    with pytest.raises(ValueError, match="expected needs of .*, got 'sounds'"):
        study("widths", **FIELDS, needs=wrong)


@pytest.mark.parametrize(
    "function",
    [
        lambda model, samples: None,
        lambda model, *, run: None,
        lambda samples, model, *, run: None,
        lambda model, samples, run: None,
        lambda model, samples, more, *, run: None,
    ],
)
def test_other_parameters_are_refused(function: Any) -> None:
    with pytest.raises(TypeError, match="expected the study 'widths' to take"):
        study("widths", **FIELDS)(function)

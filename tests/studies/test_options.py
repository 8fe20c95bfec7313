"""What is read of a study's options: what its function has, or one clear sentence why not."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.studies.brought import STUDY, bring
from tests.studies.standard import STUDIES
from vlm_lens.studies.options import TAKEN, Option, Study, read_study
from vlm_lens.studies.source import SourceError

KINDS = """
    from collections.abc import Sequence
    from typing import Literal
    Way = Literal["near", "far"]
    HALF = 0.5
"""
SIGNATURE = "least: int = 1"
HELP = "least: The narrowest that counts."


def read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, option: str, *, help: str = HELP, **change: str
) -> Study:
    """A study with one option, or with parts of its source changed."""
    source = STUDY.replace(SIGNATURE, option).replace(HELP, help)
    for before, after in change.values():  # pyright: ignore[reportAssignmentType]
        assert before in source
        source = source.replace(before, after)
    imports = "from typing import Literal\nfrom .kinds import Way, HALF\n"
    monkeypatch.syspath_prepend(bring(folder, {"kinds.py": KINDS, "of.py": imports + source}, {}))
    return read_study("brought.of", "widths")


# The studies that there are -----------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_what_is_read_is_what_the_function_has(study: Study) -> None:
    function = getattr(import_module(study.module), study.function)
    declared = {name: getattr(study, name) for name in function.study}
    check = function.study["check"]
    assert declared == {**function.study, "check": check and check.__name__}
    parameters = inspect.signature(function).parameters
    options = [p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and n != "run"]
    assert [option.name for option in study.options] == [p.name for p in options]
    assert [option.default for option in study.options] == [p.default for p in options]
    assert study.has_datasets == ("datasets" in parameters)
    document = inspect.getdoc(function) or ""
    assert document.startswith(study.summary.split()[0])
    assert all(option.help for option in study.options)


# Types --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("least: int = 3", ("int", 3, (), False)),
        ("least: float = 1e-3", ("float", 1e-3, (), False)),
        ("least: int | float = HALF", ("float", 0.5, (), False)),
        ("least: str | None = None", ("str", None, (), False)),
        ("least: bool = False", ("bool", False, (), False)),
        ("least: Literal['a', 'b'] = 'b'", ("str", "b", ("a", "b"), False)),
        ("least: Literal['a'] | None = None", ("str", None, ("a",), False)),
        ("least: Way = 'far'", ("str", "far", ("near", "far"), False)),
        ("least: Sequence[int] = (0, 1)", ("int", (0, 1), (), True)),
        ("least: Sequence[Way] | None = None", ("str", None, ("near", "far"), True)),
    ],
)
def test_types_that_options_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, expected: tuple[Any, ...]
) -> None:
    [option] = read(tmp_path, monkeypatch, written).options
    assert (option.kind, option.default, option.choices, option.is_many) == expected
    assert option == Option("least", *expected, HELP.partition(": ")[2])


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("least=1", "has no type"),
        ("least: dict[str, int] = None", "has dict[str, int]"),
        ("least: int | str = 1", "has int | str"),
        ("least: Literal[1, 2] = 1", "has Literal[1, 2]"),
        ("least: Sequence[bool] = (True,)", "has Sequence[bool]"),
        ("least: Unknown = 1", "has Unknown"),
    ],
)
def test_other_types_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, shown: str
) -> None:
    with pytest.raises(SourceError) as caught:
        read(tmp_path, monkeypatch, written)
    said = str(caught.value)
    assert said.startswith(f"brought.of.widths: the option 'least' {shown}: expected int, float")


# What is not declared -----------------------------------------------------------------------------


def test_what_can_be_added_later_is_a_yes_or_no(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its value is not compared with what is in a folder, so a number would be a silent mix."""
    with pytest.raises(
        SourceError, match="'controls' can be added later, so it is a bool, got int"
    ):
        read(tmp_path, monkeypatch, "controls: int = 3", help="controls: What.")
    assert read(tmp_path, monkeypatch, "controls: bool = True", help="controls: What.")


@pytest.mark.parametrize("name", [name for name in TAKEN if name != "run"])
def test_names_that_are_taken_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(SourceError, match=f"the option '{name}' is called like one that every"):
        read(tmp_path, monkeypatch, f"{name}: int = 1", help=f"{name}: What.")


@pytest.mark.parametrize(
    ("option", "change", "message"),
    [
        ("most: int = 1", {}, "the option 'most' is not explained: add it to \"Args:\""),
        ("least: int", {}, "the option 'least' needs a default that is written out"),
        ("least: int = len('a')", {}, "the option 'least' needs a default that is written out"),
        (SIGNATURE, {"n": ("n=3", "n=len('abc')")}, "expected @study to be given name, title"),
        (SIGNATURE, {"n": ("n=3", "n='three'")}, "expected @study to be given name, title"),
        (SIGNATURE, {"n": (", n=3", "")}, "expected @study to be given name, title"),
        (SIGNATURE, {"n": ("n=3", "n=3, needs='images'")}, "expected @study to be given name"),
        (SIGNATURE, {"on": ("@study(", "@other(")}, "is no study: it has no @study"),
        (SIGNATURE, {"doc": ("How wide layers are.", "")}, "does not say what it is"),
    ],
)
def test_what_is_not_declared_is_refused_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    change: dict[str, Any],
    message: str,
) -> None:
    changes = {**change, "args": ("Args:", "Args:")}
    if "doc" in change:
        changes = {**change, "args": ("    Args:\n        least: The narrowest that counts.\n", "")}
    with pytest.raises(SourceError) as caught:
        read(tmp_path, monkeypatch, option, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

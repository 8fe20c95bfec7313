"""What is read off a module's source is what the module has once it is imported."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.studies.brought import bring
from vlm_lens.studies.source import UNKNOWN, Source, SourceError, find, sections_of

HOME = """
    from typing import Literal
    Way = Literal["near", "far"]
    LEAST: int = 3
    MADE = len("abc")
"""
USER = """
    from typing import Literal
    from brought.home import Way, LEAST as FEWEST, MADE
    from .home import Way as Near
    from . import home
    from brought.missing import Gone
    BELOW = -2.5
    MANY = (FEWEST, 4)
    Again = Near
    def function(): ...
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    bring(tmp_path, {"home.py": HOME, "user.py": USER}, {})
    monkeypatch.syspath_prepend(tmp_path)
    return Source("brought.user")


def test_a_module_is_found_without_importing_its_package(source: Source) -> None:
    assert find("brought.user").name == "user.py"
    assert find("brought").name == "__init__.py"


@pytest.mark.parametrize(
    "module", ["", "there_is_none", "brought.none", "json.decoder.x", "_thread", "math", "bare"]
)
def test_what_has_no_source_is_refused(
    source: Source, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, "bare", ModuleType("bare"))  # knows not where it is from
    with pytest.raises(SourceError, match=f"there is no source of '{module}'"):
        find(module)


@pytest.mark.parametrize("name", ["Way", "Near", "Again"])
def test_names_of_types_are_followed_through_imports(source: Source, name: str) -> None:
    resolved = source.resolved(ast.Name(name))
    assert resolved is not None
    assert ast.unparse(resolved) == "Literal['near', 'far']"


@pytest.mark.parametrize(
    ("written", "value"),
    [
        *[("3", 3), ("-2.5", -2.5), ("'a'", "a"), ("(1, 2)", (1, 2)), ("None", None)],
        *[("FEWEST", 3), ("BELOW", -2.5), ("True", True)],
    ],
)
def test_what_is_written_out_is_read(source: Source, written: str, value: object) -> None:
    assert source.value(ast.parse(written, mode="eval").body) == value


@pytest.mark.parametrize(
    "written", ["MADE", "nowhere", "Gone", "f(3)", "MANY", "{[]: 1}", "home.LEAST", "int", "1 + 1"]
)
def test_what_has_to_be_computed_is_unknown(source: Source, written: str) -> None:
    assert source.value(ast.parse(written, mode="eval").body) is UNKNOWN


def test_names_that_lead_in_a_circle_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"one.py": "from brought.two import X", "two.py": "from brought.one import X"}
    monkeypatch.syspath_prepend(bring(tmp_path, files, {}))
    assert Source("brought.one").value(ast.Name("X")) is UNKNOWN


@pytest.mark.parametrize("written", [b"def broken(:", b"\xff\xfe", b"x = '\0'"])
def test_what_cannot_be_parsed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bytes
) -> None:
    bring(tmp_path, {}, {})
    (tmp_path / "brought" / "bad.py").write_bytes(written)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match="the source of 'brought.bad' cannot be read: "):
        Source("brought.bad").function("anything")


def test_a_function_that_is_not_there_is_refused(source: Source) -> None:
    assert source.function("function").name == "function"
    with pytest.raises(SourceError, match=r"'brought.user' has no function 'other'"):
        source.function("other")


def test_a_docstring_is_taken_apart() -> None:
    first, then, arguments = sections_of(
        """What it does, over
        two lines.

        Details: of some kind.

        More of them.

        Args:
            one: With a colon: here.
            two: Over
                two lines.

        Raises:
            ValueError: no: argument.
        """
    )
    assert first == "What it does, over two lines."
    assert then == "Details: of some kind. More of them."
    assert arguments == {"one": "With a colon: here.", "two": "Over two lines."}


def test_a_docstring_of_a_line_has_nothing_else() -> None:
    assert sections_of("What it does.") == ("What it does.", "", {})
    assert sections_of("") == ("", "", {})

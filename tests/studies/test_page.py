"""The page of a study and what a terminal says: sections as they are, everything escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from tests.page import Page, assert_self_contained
from tests.studies.standard import ATTACK
from vlm_lens.results import Result, Section
from vlm_lens.studies.options import Study
from vlm_lens.studies.page import lines, render_study

STUDY = Study(
    check=None,
    module="mine.of",
    function="widths",
    name="widths",
    title="Widths & heights",
    paper="arXiv 1234.5678",
    n=3,
    task="image",
    needs=(),
    summary="How wide layers are.",
    description="",
    options=(),
    has_datasets=False,
)


@dataclass(frozen=True)
class Drawing:
    """A figure of our own."""

    html: str


@dataclass(frozen=True, repr=False, eq=False)
class Found(Result):
    """Whatever a test says."""

    KIND = "found"
    said: str
    parts: Sequence[Section]
    noted: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        return self.noted

    def summary(self) -> str:
        return self.said

    def sections(self) -> list[Section]:
        return [*self.parts]


def frame(n: int = 2) -> pd.DataFrame:
    return pd.DataFrame({"top_layer": [f"layer {i}" for i in range(n)], "n": range(n)})


def rendered(*sections: Section, said: str = "Two layers", **options: Any) -> Page:
    noted = options.pop("noted", ())
    given = {"about": {"Model": "tiny"}, "options": {"n": 3}, "command": "vlm-lens widths"}
    page = Page(render_study(STUDY, Found(said, sections, noted), **given, **options))
    assert_self_contained(page)
    return page


# The page -----------------------------------------------------------------------------------------


def test_what_a_reader_sees_first() -> None:
    page = rendered(said="Two layers are wide", notes=["one left out"], noted=("not finite",))
    for said in ("Two layers are wide", "Widths & heights", "arXiv 1234.5678", "tiny"):
        assert said in page.text
    assert "How wide layers are." in page.text
    assert page.text.index("one left out") < page.text.index("not finite")
    assert "vlm-lens widths" in page.text
    assert page.figures == []
    assert page.programs == []  # no library where nothing is drawn


def test_each_part_of_a_section_is_shown() -> None:
    figure = go.Figure(layout={"title": {"text": "drawn"}})
    page = rendered(
        Section(title="One", sentences=["It is so.", "It is."], figure=figure, aside="Small."),
        Section(title="Two", table=frame()),
        Section(figure=Drawing("<svg><title>ours</title></svg>")),
    )
    assert "It is so. It is." in page.text
    assert "Small." in page.text
    [drawn] = page.figures
    assert drawn["layout"]["title"]["text"] == "drawn"
    words = " ".join(page.text.split())
    assert "top layer n layer 0 0 layer 1 1" in words
    assert page.count("h2") == rendered().count("h2") + 2
    assert page.count("svg") == 1
    assert page.count("details") == rendered().count("details")


def test_a_folded_table_is_for_who_opens_it() -> None:
    page = rendered(Section(title="All", table=frame(3), shown="folded"))
    assert page.count("details") == rendered().count("details") + 1
    assert "All 3 rows" in page.text
    assert "layer 2" in page.text


def test_texts_are_escaped_wherever_they_are() -> None:
    table = pd.DataFrame({f"{ATTACK} c": [f"{ATTACK} v"]})
    section = Section(
        title=f"{ATTACK} t", sentences=[f"{ATTACK} s"], table=table, aside=f"{ATTACK} a"
    )
    page = rendered(section, said=f"{ATTACK} h", notes=[f"{ATTACK} n"], noted=(f"{ATTACK} r",))
    assert page.count("img") == 0
    for which in "ctvsahnr":
        assert f"{ATTACK} {which}" in page.text


def test_the_same_result_gives_the_same_page() -> None:
    found = Found("Two", [Section(table=frame(), figure=go.Figure())])
    given: dict[str, Any] = {"about": {}, "options": {}, "command": "vlm-lens widths"}
    assert render_study(STUDY, found, **given) == render_study(STUDY, found, **given)


# The terminal -------------------------------------------------------------------------------------


def test_lines_are_headline_notes_and_sections() -> None:
    found = Found(
        "Two layers.",
        [
            Section(sentences=["First."]),
            Section(title="Drawn alone", figure=go.Figure()),
            Section(title="Told", sentences=["Second."], table=frame(1)),
            Section(title="Folded", table=frame(), shown="folded"),
        ],
        ("theirs",),
    )
    assert lines(found, notes=["ours"]) == [
        *["Two layers.", "Note: ours", "Note: theirs", "", "First.", "", "Told", "Second."],
        "top layer  n\nlayer 0    0",
    ]


@pytest.mark.parametrize(("n", "more"), [(40, []), (41, ["... and 1 more rows, on the page"])])
def test_long_tables_are_cut(n: int, more: list[str]) -> None:
    *_, table = lines(Found("Many", [Section(table=frame(40))]))
    assert lines(Found("Many", [Section(table=frame(n))])) == ["Many.", "", table, *more]

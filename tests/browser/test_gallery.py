"""The gallery has every figure, every call in it runs, and all open in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import plotly.graph_objects as go
import pytest

from docs import gallery
from tests.imports import imports, room
from vlm_lens import plots
from vlm_lens.plots import HtmlFigure, ScriptFigure
from vlm_lens.plots.page import DRAW, as_json, library

DATA = {"Cell", "Curve", "Panel"}
"""What figures take."""


@pytest.mark.full
def test_every_figure_is_there_and_opens_offline(request: pytest.FixtureRequest, tmp_path: Path):
    examples = list(gallery.examples())  # some ten seconds, and so only here
    assert len(examples) == len(gallery.CODES)
    for one in examples:
        check(one)
    called = {name for one in examples for name in re.findall(r"plots\.(\w+)\(", one.code)}
    drawn = {base.__name__ for one in examples for base in type(one.figure).__mro__}
    by_results = {
        other.rpartition(".")[2]
        for name, others in imports().items()
        for other in others
        if (room(name), room(other)) == ("analyses", "plots")
    }
    assert set(plots.__all__) <= called | drawn | by_results | DATA

    offline = request.getfixturevalue("offline")  # skips where there is no browser
    path = tmp_path / "gallery.html"
    path.write_text(page_of(examples), encoding="utf-8")
    page = offline(path)
    charts = sum(isinstance(one.figure, go.Figure) for one in examples)
    page.wait_for_function(f"document.querySelectorAll('.figure .main-svg').length >= {charts}")
    for frame in page.frames[1:]:
        frame.wait_for_selector("canvas, .colored-tokens")
    assert len(page.frames) == 1 + sum(isinstance(one.figure, ScriptFigure) for one in examples)


def check(one: gallery.Example) -> None:
    """It is a figure, with a title and a size, and sends nothing."""
    assert isinstance(one.figure, go.Figure | HtmlFigure), one.title
    assert max(map(len, one.code.splitlines())) <= 100
    if isinstance(one.figure, go.Figure):
        layout = one.figure.layout
        assert layout.title.text, one.title
        assert max(layout.width, layout.height) <= 1300, one.title
        assert list(layout.modebar.remove) == ["sendChartToCloud"], one.title


def page_of(examples: list[gallery.Example]) -> str:
    """All figures on one page."""
    parts = [f"<!doctype html><meta charset=utf-8><body><script>{library()}</script>"]
    for one in examples:
        if isinstance(one.figure, go.Figure):
            data = as_json(one.figure)
            parts.append(
                f'<div class="figure"></div><script type="application/json">{data}</script>'
            )
        else:
            parts.append(one.figure._repr_html_())
    return "\n".join([*parts, f"<script>{DRAW}</script>"])

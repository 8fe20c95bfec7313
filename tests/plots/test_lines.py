"""Lines over layers: one colour a name, gaps where nothing was measured."""

from __future__ import annotations

import math

import pytest

from vlm_lens.plots.lines import Panel, lines, lines_of


def test_a_name_has_one_colour_and_one_line_in_the_legend():
    drawn = {"text": ([0, 1], [1.0, 2.0]), "<b>": ([0, 1], [3.0, math.nan])}
    figure = lines(
        [Panel("up", drawn), Panel("down", drawn, {"text": ([0, 1], [0.0, 0.0])})], title="demo"
    )
    traces = [(t.name, t.line.color, t.line.dash, t.showlegend, t.yaxis) for t in figure.data]
    colours = {name: colour for name, colour, *_ in traces}
    assert len(set(colours.values())) == 2
    assert [(t[0], t[2], t[3], t[4]) for t in traces] == [
        ("text", "solid", True, "y"),
        ("&lt;b&gt;", "solid", True, "y"),
        ("text", "solid", False, "y2"),
        ("&lt;b&gt;", "solid", False, "y2"),
        ("text", "dot", False, "y2"),
    ]
    assert figure.data[1].y == (3.0, None)
    assert traces[0][1] == traces[4][1]
    assert figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1]


def test_an_axis_reaches_at_least_what_it_should():
    line = {"a": ([0, 1], [0.1, 0.2])}
    free, full = (lines([Panel("x", line, reach=r)], title="").layout for r in (None, 1))
    assert free.yaxis.range is None
    assert full.yaxis.range == (0.0, 1.05)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="expected lines to draw"):
        lines([Panel("x", {})], title="demo")


def test_rows_become_a_line_for_each_name_with_the_mean_of_what_is_at_one_place():
    rows = [
        {"x": x, "y": y, "a": a, "b": "all"}
        for x, y, a in ((0, 1.0, "text"), (1, 2.0, "text"), (1, 4.0, "text"), (0, 9.0, "image"))
    ]
    drawn = {"text and all": ([0, 1], [1.0, 3.0]), "image and all": ([0], [9.0])}
    assert lines_of(rows, "x", "y", by=["a", "b"]) == drawn

"""Lines over layers: one colour a name, gaps where nothing was measured."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from tests.tiny import Tiny, picture
from vlm_lens import Sample
from vlm_lens.analyses import miner
from vlm_lens.analyses.miner_convergence import convergence
from vlm_lens.analyses.miner_curve import MaskingCurve
from vlm_lens.analyses.miner_phenomena import phenomena
from vlm_lens.analyses.miner_sets import by_layer
from vlm_lens.plots.importance_by_layer import importance_by_layer
from vlm_lens.plots.line_panels import Panel, line_panels
from vlm_lens.plots.masking_curves import masking_curves

ASKED = [Sample(images=[picture(i)], text="what color ?") for i in range(6)]


def test_a_name_has_one_colour_and_one_line_in_the_legend():
    lines = {"text": ([0, 1], [1.0, 2.0]), "<b>": ([0, 1], [3.0, math.nan])}
    figure = line_panels(
        [Panel("up", lines), Panel("down", lines, {"text": ([0, 1], [0.0, 0.0])})], title="demo"
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
    free, full = (line_panels([Panel("x", line, reach=r)], title="").layout for r in (None, 1))
    assert free.yaxis.range is None
    assert full.yaxis.range == (0.0, 1.05)


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="expected lines to draw"):
        line_panels([Panel("x", {})], title="demo")


def test_importance_is_drawn_with_what_is_selected(llava: Tiny):
    scores = miner.score(llava.model, ASKED[:2])
    selected = miner.select(scores, ratio=0.1)
    figure = importance_by_layer(scores, selected=selected, weights={"max": 1})
    assert [t.name for t in figure.data] == ["text", "special", "image"] * 3
    expected = scores.by_layer({"max": 1})
    assert list(figure.data[0].y) == expected[expected.modality == "text"]["mean"].tolist()
    counts = by_layer(selected, sizes=scores.sizes).frame
    assert list(figure.data[8].y) == counts[counts.modality == "image"]["n_neurons"].tolist()
    assert "2 samples" in figure.layout.title.text
    assert scores.plot().data[0].y == importance_by_layer(scores).data[0].y


def test_curves_show_clean_masked_and_random():
    columns = ["task", "ratio", "masked", "control", "seed", "performance"]
    rows = [("vqa", 0.0, "none", False, -1, 0.9)]
    for ratio, own, random in ((0.01, 0.8, 0.9), (0.1, 0.2, 0.7)):
        rows += [
            ("vqa", ratio, "image", False, -1, own),
            ("vqa", ratio, "image", True, 0, random),
            ("vqa", ratio, "image", True, 1, random - 0.2),
        ]
    figure = masking_curves(MaskingCurve(pd.DataFrame(rows, columns=columns)))
    clean, own, random = figure.data
    assert (clean.x, clean.y) == ((0.01, 0.1), (0.9, 0.9))
    assert own.y == (0.8, 0.2)
    assert random.y == pytest.approx((0.8, 0.6))
    assert random.line.dash == "dot"
    assert figure.layout.xaxis.type == "log"
    assert set(figure.layout.xaxis.ticktext) == {"1%", "2%", "5%", "10%"}
    nothing = pd.DataFrame(rows[:1], columns=columns)
    with pytest.raises(ValueError, match="neurons masked, got none"):
        masking_curves(MaskingCurve(nothing))


def test_results_draw_themselves(llava: Tiny):
    found = convergence(llava.model, ASKED, k=2)
    figure = found.plot()
    assert len(figure.layout.annotations) == 3
    dotted = [t for t in figure.data if t.line.dash == "dot"]
    assert len(dotted) == 3
    assert list(dotted[0].y) == found.frame["cka_shuffled"].tolist()[:4] or len(dotted[0].y) == 4
    drawn = phenomena(llava.model, ASKED).plot()
    assert {t.name for t in drawn.data} == {"special", "image"}

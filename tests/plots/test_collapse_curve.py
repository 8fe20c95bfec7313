"""The collapse curve shows every measurement where it belongs, and says what it is."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.fake_critical import result
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.plots.axes import ZERO, Scale, k_axis, log_ticks
from vlm_lens.plots.layout import wrapped

MANY = tuple(sorted({0, *(2**i for i in range(12)), *range(985, 1012), 1200}))


def traces(figure, axis: str) -> dict[str, object]:
    """The traces of a panel by name."""
    return {trace.name: trace for trace in figure.data if trace.yaxis == axis}


def annotations(figure) -> dict[str, object]:
    return {each.text: each for each in figure.layout.annotations}


def only(found: CriticalNeurons, *names: str) -> CriticalNeurons:
    """The same with some metrics only."""
    curve = [replace(m, metrics={name: m.metrics[name] for name in names}) for m in found.curve]
    return replace(found, curve=tuple(curve))


@pytest.mark.parametrize("found", [result(k=2, ks=(0, 1, 2), onset=1), result(k=1000, ks=MANY)])
def test_every_measurement_is_a_marker(found):
    figure = found.plot()
    above, below = traces(figure, "y"), traces(figure, "y2")
    assert list(above) == ["perplexity", "own perplexity", "clean perplexity"]
    assert list(below) == ["agreement", "similarity"]
    for trace in figure.data:
        metric = trace.name.replace(" ", "_")
        values = np.array([m.metrics[metric] for m in found.curve])
        assert trace.mode == "lines+markers"
        assert trace.x == tuple(m.k or ZERO for m in found.curve)
        expected = values / values[0] if trace.yaxis == "y" else values
        np.testing.assert_allclose(trace.y, expected)


def test_hints_have_the_exact_values():
    figure = result(method="<b>CAN</b>").plot()
    hints = traces(figure, "y")["perplexity"].text
    assert hints[9].split("<br>") == [
        "<b>&lt;b&gt;CAN&lt;/b&gt;</b>",
        "k = 12 of 16 ranked neurons masked",
        "perplexity = 44.8",
        "32 times that at k = 0",
        "collapsed",
    ]
    assert hints[0].endswith("not collapsed")
    assert "similarity = 0.40727" in traces(figure, "y2")["similarity"].text[9]


def test_a_ratio_beside_its_perplexity_is_drawn_once():
    figure = only(result(), "perplexity_ratio", "agreement").plot()
    assert list(traces(figure, "y")) == ["perplexity ratio"]


@pytest.mark.parametrize("names", [("perplexity",), ("agreement", "similarity")])
def test_one_panel_is_enough_for_one_kind_of_metric(names):
    figure = only(result(), *names).plot()
    assert {trace.yaxis for trace in figure.data} == {"y"}
    assert figure.layout.yaxis.domain == (0, 1)
    assert figure.layout.yaxis.type == ("log" if names == ("perplexity",) else "linear")
    assert "yaxis2" not in figure.layout.to_plotly_json()


def test_what_was_not_measured_is_not_drawn():
    curve = (
        Measurement(0, {"perplexity": 2.0}),
        Measurement(3, {"perplexity": 4.0, "similarity": 0.5}),
    )
    figure = result(k=3, curve=curve, onset=None).plot()
    assert traces(figure, "y2")["similarity"].x == (3,)


def test_nothing_measured_is_nothing_to_draw():
    with pytest.raises(ValueError, match="a result without any metric"):
        only(result()).plot()


# What is not finite -------------------------------------------------------------------------------


def test_what_is_not_finite_is_an_open_marker_at_the_top():
    figure = result(infinite_from=13).plot()
    panel = traces(figure, "y")
    for name, value in (("perplexity", "inf"), ("own perplexity", "nan")):
        line, marks = panel[name], panel[f"{name}, not finite"]
        assert line.y[10:] == (None, None, None)
        assert marks.x == (13, 14, 16)
        assert min(marks.y) > max(
            y for trace in panel.values() for y in trace.y[:10] if y and trace.mode != "markers"
        )
        assert marks.marker.symbol == "circle-open"
        assert marks.marker.color == line.line.color
        assert f"{name.replace(' ', '_')} = {value} (not finite)" in marks.text[0]
        assert marks.showlegend is False
    assert figure.layout.yaxis.ticktext[-1] == "∞, NaN"
    top = 10 ** figure.layout.yaxis.range[1]
    rows = {trace.y[0] for name, trace in panel.items() if name.endswith("not finite")}
    assert len(rows) == 3  # none hides another
    assert max(rows) < top
    assert figure.layout.yaxis2.ticktext[-1] == "1"


@pytest.mark.parametrize("clean", [math.inf, math.nan, 0.0])
def test_a_clean_value_that_nothing_can_be_divided_by(clean):
    curve = (Measurement(0, {"perplexity": clean}), Measurement(1, {"perplexity": 4.0}))
    parameters = {"collapse": ["perplexity >= 10", "perplexity_ratio >= 10"]}
    found = result(k=1, curve=curve, onset=None, parameters=parameters)
    figure = found.plot()
    drawn = traces(figure, "y")["perplexity, not finite"]
    assert 1 in drawn.x
    assert f"perplexity = {clean:.6g}" in traces(figure, "y")["perplexity"].text[0]
    assert "perplexity = 4" in drawn.text[-1]


# Stages, thresholds, baselines --------------------------------------------------------------------


def vertical(figure) -> list[float]:
    return sorted(shape.x0 for shape in figure.layout.shapes if shape.x0 == shape.x1)


def test_both_stages_are_marked():
    figure = result().plot()
    assert vertical(figure) == [7, 12]
    onset, collapse = (
        annotations(figure)[text] for text in ("degradation begins at k = 7", "collapse at k = 12")
    )
    assert 10**onset.x == pytest.approx(7)
    assert 10**collapse.x == pytest.approx(12)
    assert onset.ay < collapse.ay  # further up, past the other label
    assert figure.layout.title.text.startswith("CAN: k* = 12 of 16 ranked")


def test_stages_that_coincide_have_one_label():
    figure = result(k=3, ks=(0, 1, 2, 3, 4), onset=3).plot()
    assert vertical(figure) == [3]
    assert "degradation begins and collapse at k = 3" in annotations(figure)


def test_no_collapse_has_no_line_and_says_so():
    figure = result(k=None, ks=(0, 1, 512), onset=None).plot()
    assert vertical(figure) == []
    assert figure.layout.title.text.startswith("CAN: no collapse within 512 neurons")


def test_degradation_before_anything_was_masked():
    figure = result(stages=Stages(0, 12, "")).plot()
    assert vertical(figure) == [ZERO, 12]
    assert "degradation begins at k = 0" in annotations(figure)


def test_thresholds_are_lines_in_their_panel():
    figure = result().plot()
    lines = {(shape.y0, shape.yref) for shape in figure.layout.shapes if shape.y0 == shape.y1}
    assert lines == {(10, "y"), (0.3, "y2"), (0.95, "y2")}
    label = annotations(figure)["collapse: perplexity ratio ≥ 10"]
    assert label.y == pytest.approx(1)  # its logarithm
    assert annotations(figure)["degraded: agreement ≤ 0.95"].y == 0.95


def test_a_threshold_of_a_perplexity_is_over_the_clean_one_too():
    figure = result(parameters={"collapse": ["perplexity >= 14"]}).plot()
    assert [s.y0 for s in figure.layout.shapes if s.y0 == s.y1] == pytest.approx([10])


@pytest.mark.parametrize("parameters", [{}, {"collapse": "soon"}, {"collapse": None}])
def test_without_criteria_there_are_no_thresholds(parameters):
    figure = result(parameters=parameters).plot()
    assert not [shape for shape in figure.layout.shapes if shape.y0 == shape.y1]


def test_baselines_are_thinner_and_listed_once():
    others = {
        "random <image>": result(k=None, ks=(0, 1, 256), onset=None),
        "activation": result(k=40, ks=(0, 16, 39, 40), onset=20),
        "gradient": result(k=150, ks=(0, 64, 149, 150), onset=70),
        "seed 1": result(k=None, ks=(0, 300), onset=None, infinite_from=300),
    }
    figure = result().plot(others=others)
    names = [
        "random &lt;image&gt; (no collapse<br>within 256)",
        "activation (k* = 40)",
        "gradient (k* = 150)",
        "seed 1 (no collapse within<br>300)",
    ]
    for axis, is_listed in (("y", True), ("y2", False)):
        panel = traces(figure, axis)
        assert [name for name in panel if name in names] == names
        for name in names:
            assert panel[name].line.width < 2
            assert panel[name].showlegend is is_listed
            assert panel[name].legend == "legend3"
        looks = {(panel[name].line.color, panel[name].line.dash) for name in names}
        assert len(looks) == 4
        assert panel[names[1]].x == (ZERO, 16, 39, 40)
    assert "seed 1 (no collapse within<br>300), not finite" in traces(figure, "y")
    assert 10 ** figure.layout.xaxis.range[1] > 300


def test_a_baseline_lacks_a_metric_that_was_not_measured_for_it():
    others = {"random": only(result(), "similarity")}
    figure = result().plot(others=others)
    assert "random (k* = 12)" not in traces(figure, "y")
    assert "random (k* = 12)" in traces(figure, "y2")
    assert traces(figure, "y2")["random (k* = 12)"].showlegend


def test_the_model_and_the_notes_are_above():
    notes = ("not monotone: k = 13 does not collapse <image>", "CAN: k* = 12 of 16")
    title = result(notes=notes).plot().layout.title.text
    assert "model: shapes-llava" in title
    assert "does not collapse &lt;image&gt;" in title
    assert title.count("k* = 12 of 16") == 1  # the second note says nothing new


def test_a_page_of_it_asks_for_nothing(tmp_path):
    html = result(method="</script><image>").plot().to_html(include_plotlyjs=False)
    assert not re.search(r"""(src|href)=["']?http""", html)
    assert html.count("</script>") == html.count("<script")
    assert "sendChartToCloud" in html  # is removed


# Axes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "shown"),
    [
        (0, ["0"]),
        (3, ["0", "1", "2", "3"]),
        (30, ["0", "1", "2", "5", "10", "20"]),
        (40_000, ["0", "1", "10", "100", "1,000", "10,000"]),
        (
            10**7,
            [
                "0",
                "1",
                "10",
                "100",
                "1,000",
                "10,000",
                "10<sup>5</sup>",
                "10<sup>6</sup>",
                "10<sup>7</sup>",
            ],
        ),
    ],
)
def test_the_axis_of_k_starts_with_zero(last, shown):
    axis = k_axis(last)
    assert axis["ticktext"] == shown
    low, high = (10**end for end in axis["range"])
    assert low < ZERO
    assert high > max(last, ZERO)


@pytest.mark.parametrize(("low", "high"), [(1, 2), (0.2, 9), (1, 1e6), (0.5, 1e300)])
def test_ticks_are_few_and_inside(low, high):
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 12
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)


@pytest.mark.parametrize("is_log", [True, False])
def test_rows_are_above_all_values_and_inside(is_log):
    scale = Scale.around([0.5, 30.0], is_log=is_log, rows=3, height=300)
    ends = scale.axis("")["range"]
    top = 10 ** ends[1] if is_log else ends[1]
    rows = [scale.row(i) for i in range(3)]
    assert 30 < rows[0] < rows[1] < rows[2] < top


def test_long_words_are_broken_and_shown_as_text():
    assert wrapped("<image> " + "x" * 12, 7) == "&lt;image&gt;<br>xxxxxxx<br>xxxxx"

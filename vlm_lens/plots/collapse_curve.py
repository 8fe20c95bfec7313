"""How perplexity and answers change as more and more neurons are masked."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.plots.axes import ZERO, Scale, k_axis
from vlm_lens.plots.layout import INK, MUTED, framed, shown, wrapped

if TYPE_CHECKING:
    import plotly.graph_objects as go


_WIDTH = 980
_RATIO_HEIGHT, _SHARE_HEIGHT = 270, 190
_GAP = 26
_LABEL = 20
_MARGIN = {"l": 74, "r": 250, "b": 56}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#7B3F98", "#8C6D00", "#444444")
"""Of this result's metrics; after Okabe and Ito, dark enough to read on white."""
_PALE = ("#C98500", "#3A9BD9", "#B8578F", "#777777")
_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("square", "diamond", "triangle-up", "triangle-down", "cross", "star", "hexagon")
"""Baselines differ in all three, and no two of many in the same way."""
_LEGEND = {"x": 1.02, "font": {"size": 12}, "yanchor": "top", "tracegroupgap": 2}
_BASELINES = 3
"""The legend of the baselines; the panels have 1 and 2."""
_CRITERION = re.compile(r"(?P<metric>.+) (?P<sign>[<>]=) (?P<value>\S+)")


@dataclass(frozen=True)
class Curve:
    """What was measured as more and more neurons of a ranking were masked.

    Attributes:
        method: What ranked them.
        measurements: By rising k; the first one is with nothing masked.
        n_ranked: How many neurons are ranked.
        k: How many it takes until the model has collapsed; None if it never does.
    """

    method: str
    measurements: Sequence[Measurement]
    n_ranked: int
    k: int | None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all that was measured."""
        return tuple(dict.fromkeys(name for m in self.measurements for name in m.metrics))


@dataclass(frozen=True)
class _Point:
    """One measurement of one metric.

    Attributes:
        x: Where it is drawn.
        y: Likewise; None where the value is not finite.
        hint: Its exact values.
    """

    x: int | float
    y: float | None
    hint: str


@dataclass(frozen=True)
class _Curve:
    """One metric of one result.

    Attributes:
        name: For the legend, ready for plotly.
        look: Colour, dash, symbol, width and size.
        points: By rising k.
        is_baseline: Whether it is of another result.
    """

    name: str
    look: dict[str, Any]
    points: list[_Point]
    is_baseline: bool = False

    @property
    def is_finite(self) -> bool:
        return all(point.y is not None for point in self.points)


@dataclass(frozen=True)
class _Panel:
    """One of the two plots, one above the other.

    Attributes:
        title: Of its axis.
        curves: Baselines first, so that they lie below.
        listed: Those in the legend beside it: of baselines, all are in the upper one's.
        thresholds: Where lines are drawn, and what they say.
        scale: The axis.
    """

    title: str
    curves: list[_Curve]
    listed: list[_Curve]
    thresholds: list[tuple[float, str]]
    scale: Scale


def collapse_curve(
    curve: Curve,
    *,
    title: str,
    stages: Stages | None = None,
    criteria: Mapping[str, Sequence[str]] | None = None,
    others: Mapping[str, Curve] | None = None,
    remarks: Sequence[str] = (),
) -> go.Figure:
    """Draws what was measured over the number of masked neurons, with both stages marked.

    Perplexities (the metrics with "perplexity" in their name) are above, over their clean values;
    shares from 0 to 1 are below. Values that are not finite are open markers at the top.

    Args:
        curve: What was measured.
        title: The heading.
        stages: Where degradation and collapse begin.
        criteria: Thresholds such as "similarity <= 0.3", by what they mean: grey lines.
        others: Baselines by name. Of these the first metric in each panel is drawn, thinner.
        remarks: Lines below the heading.

    Raises:
        ValueError: Nothing was measured.

    Example:
        >>> from vlm_lens.masking.measurement import Measurement
        >>> measured = Measurement(0, {"perplexity": 2.0}), Measurement(1, {"perplexity": 50.0})
        >>> collapse_curve(Curve("CAN", measured, n_ranked=8, k=1), title="demo").data[0].y
        (1.0, 25.0)
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    others = others or {}
    if not curve.metrics:
        raise ValueError("expected measurements to draw, got a result without any metric.")
    panels = _panels(curve, others, criteria or {})
    last = max(each.measurements[-1].k for each in (curve, *others.values()))
    layout = _layout(panels, last, title=title, remarks=remarks, labels=len(_lines(stages)))
    figure = go.Figure(layout=layout)
    for number, panel in enumerate(panels, 1):
        _add_thresholds(figure, panel, f"y{number}")
        _add_curves(figure, panel, number, [line for each in panels for line in each.listed])
    _add_stages(figure, _lines(stages))
    return figure


# What is drawn ------------------------------------------------------------------------------------


def _panels(
    main: Curve, others: Mapping[str, Curve], criteria: Mapping[str, Sequence[str]]
) -> list[_Panel]:
    colours = iter(_COLOURS * (1 + len(main.metrics) // len(_COLOURS)))
    drawn = {}
    for is_ratio in (True, False):
        names = [name for name in _drawn(main.metrics) if ("perplexity" in name) == is_ratio]
        curves = list(_baselines(names, others, is_ratio))
        curves += [_main(main, name, is_ratio, next(colours)) for name in names]
        if names:
            drawn[is_ratio] = curves
    baselines = {c.name: c for curves in reversed(drawn.values()) for c in _by_legend(curves)[1]}
    panels = []
    for is_ratio, curves in drawn.items():
        listed = _by_legend(curves)[0] + ([] if panels else list(baselines.values()))
        panels.append(_panel(curves, listed, _thresholds(main, criteria, is_ratio), is_ratio))
    return panels


def _panel(
    curves: list[_Curve],
    listed: list[_Curve],
    thresholds: list[tuple[float, str]],
    is_ratio: bool,
) -> _Panel:
    values = [point.y for curve in curves for point in curve.points if point.y is not None]
    least = _RATIO_HEIGHT if is_ratio else _SHARE_HEIGHT
    scale = Scale.around(
        [*values, *(value for value, _ in thresholds)],
        is_log=is_ratio,
        rows=sum(not curve.is_finite for curve in curves),
        height=max(least, sum(map(_legend_height, _by_legend(listed)))),
    )
    title = "perplexity ÷ that at k = 0" if is_ratio else "answers (share)"
    return _Panel(title, curves, listed, thresholds, scale)


def _by_legend(curves: list[_Curve]) -> tuple[list[_Curve], list[_Curve]]:
    """The result's own curves and the baselines."""
    own = [curve for curve in curves if not curve.is_baseline]
    return own, [curve for curve in curves if curve.is_baseline]


def _legend_height(curves: list[_Curve]) -> int:
    """In pixels, with a heading."""
    lines = [curve.name.count("<br>") + 1 for curve in curves]
    return 32 + sum(5 + 16 * count for count in lines) if lines else 0


def _drawn(metrics: Sequence[str]) -> list[str]:
    """All metrics but the ratio of a perplexity that is there itself: it is the same curve."""
    return [name for name in metrics if name.removesuffix("_ratio") not in set(metrics) - {name}]


def _main(curve: Curve, metric: str, is_ratio: bool, colour: str) -> _Curve:
    look = {"colour": colour, "dash": "solid", "symbol": "circle", "width": 2.5, "size": 8}
    return _Curve(shown(metric.replace("_", " ")), look, _points(curve, metric, is_ratio))


def _baselines(
    names: Sequence[str], others: Mapping[str, Curve], is_ratio: bool
) -> Iterable[_Curve]:
    for place, (label, other) in enumerate(others.items()):
        kinds = {"colour": _PALE, "dash": _DASHES, "symbol": _SYMBOLS}
        look = {key: kind[place % len(kind)] for key, kind in kinds.items()}
        look |= {"width": 1.3, "size": 6}
        last = other.measurements[-1].k
        ended = f"no collapse within {last:,}" if other.k is None else f"k* = {other.k:,}"
        for metric in [name for name in names if name in other.metrics][:1]:
            name = wrapped(f"{label} ({ended})", 30)
            yield _Curve(name, look, _points(other, metric, is_ratio), is_baseline=True)


def _points(curve: Curve, metric: str, is_ratio: bool) -> list[_Point]:
    points = []
    for measurement in curve.measurements:
        if metric in measurement.metrics:
            value = measurement.metrics[metric]
            y = _over_clean(curve, metric, value, is_ratio)
            hint = _hint(curve, measurement, metric, y if is_ratio else None)
            points.append(_Point(measurement.k or ZERO, y, hint))
    return points


def _over_clean(curve: Curve, metric: str, value: float, is_ratio: bool) -> float | None:
    """How high a value is drawn; None if that is not finite, or nowhere on a logarithmic axis."""
    clean = curve.measurements[0].metrics.get(metric, math.nan) if is_ratio else 1.0
    drawn = value / clean if clean else math.nan
    return drawn if math.isfinite(drawn) and (drawn > 0 or not is_ratio) else None


def _hint(curve: Curve, measurement: Measurement, metric: str, ratio: float | None) -> str:
    value = measurement.metrics[metric]
    lines = [
        f"<b>{wrapped(curve.method, 60)}</b>",
        f"k = {measurement.k:,} of {curve.n_ranked:,} ranked neurons masked",
        f"{shown(metric)} = {value:.6g}" + ("" if math.isfinite(value) else " (not finite)"),
    ]
    if ratio is not None:
        lines.append(f"{ratio:.6g} times that at k = 0")
    if measurement.collapsed is not None:
        lines.append("collapsed" if measurement.collapsed else "not collapsed")
    return "<br>".join(lines)


def _thresholds(
    curve: Curve, criteria: Mapping[str, Sequence[str]], is_ratio: bool
) -> list[tuple[float, str]]:
    """Height and text of each threshold of this panel."""
    heights = {}
    for stage, given in criteria.items():
        for written in given:
            match = _CRITERION.fullmatch(written)
            if match is None or ("perplexity" in match["metric"]) != is_ratio:
                continue
            value = _over_clean(curve, match["metric"], float(match["value"]), is_ratio)
            sign, name = "≥" if match["sign"] == ">=" else "≤", match["metric"].replace("_", " ")
            if value is not None:
                heights[value, shown(f"{stage}: {name} {sign} {match['value']}")] = None
    return list(heights)


# How it is drawn ----------------------------------------------------------------------------------


def _layout(
    panels: Sequence[_Panel], last: int, *, title: str, remarks: Sequence[str], labels: int
) -> dict[str, Any]:
    inner = sum(panel.scale.height for panel in panels) + _GAP * (len(panels) - 1)
    margin = {**_MARGIN, "t": 8 + _LABEL * labels}
    layout = framed(
        title=title,
        remarks=[remark for remark in remarks if remark not in title],
        width=_WIDTH,
        height=inner + margin["t"] + margin["b"],
        margin=margin,
    )
    layout["xaxis"] = k_axis(last)
    top = inner  # in pixels above the lower end
    for number, panel in enumerate(panels, 1):
        domain = [(top - panel.scale.height) / inner, top / inner]
        layout[f"yaxis{number}"] = {**panel.scale.axis(panel.title), "domain": domain}
        own, baselines = _by_legend(panel.listed)
        layout[f"legend{number}"] = {**_LEGEND, "y": top / inner}
        if baselines:
            heading = {"text": "baselines", "font": {"color": MUTED, "size": 12}}
            below = (top - _legend_height(own)) / inner
            layout[f"legend{_BASELINES}"] = {**_LEGEND, "y": below, "title": heading}
        top -= panel.scale.height + _GAP
    return layout


def _add_thresholds(figure: go.Figure, panel: _Panel, axis: str) -> None:
    is_log = panel.scale.is_log
    for value, text in panel.thresholds:
        line = {"color": MUTED, "width": 1, "dash": "dot"}
        figure.add_shape(
            type="line", x0=0, x1=1, y0=value, y1=value, xref="paper", yref=axis, line=line
        )
        figure.add_annotation(
            text=text,
            font={"size": 11, "color": MUTED},
            x=0,
            xref="paper",
            xanchor="left",
            y=math.log10(value) if is_log else value,  # plotly takes shapes' values as they are
            yref=axis,
            yanchor="bottom" if is_log else "top",  # on the side where the curves are not
            showarrow=False,
        )


def _add_curves(figure: go.Figure, panel: _Panel, number: int, listed: list[_Curve]) -> None:
    row = 0
    for curve in panel.curves:
        legend = _BASELINES if curve.is_baseline else number
        shared: dict[str, Any] = {
            "yaxis": f"y{number}",
            "legend": f"legend{legend}",
            "legendgroup": curve.name,
            "hovertemplate": "%{text}<extra></extra>",
        }
        look = curve.look
        figure.add_scatter(
            x=[point.x for point in curve.points],
            y=[point.y for point in curve.points],
            text=[point.hint for point in curve.points],
            name=curve.name,
            mode="lines+markers",
            line={"color": look["colour"], "dash": look["dash"], "width": look["width"]},
            marker={"symbol": look["symbol"], "size": look["size"]},
            showlegend=any(curve is each for each in listed),
            **shared,
        )
        if not curve.is_finite:
            _add_not_finite(figure, curve, panel.scale.row(row), shared)
            row += 1


def _add_not_finite(
    figure: go.Figure, curve: _Curve, height: float, shared: dict[str, Any]
) -> None:
    """Open markers in the curve's row at the top."""
    missing = [point for point in curve.points if point.y is None]
    look = {"symbol": f"{curve.look['symbol']}-open", "size": 8, "color": curve.look["colour"]}
    figure.add_scatter(
        x=[point.x for point in missing],
        y=[height] * len(missing),
        text=[point.hint for point in missing],
        name=f"{curve.name}, not finite",
        mode="markers",
        marker={**look, "line": {"width": 2}},
        showlegend=False,
        **shared,
    )


def _lines(stages: Stages | None) -> list[tuple[int, str, str]]:
    """The last stage first: its k, its name, and how its line is drawn."""
    onset, collapse = (None, None) if stages is None else (stages.onset, stages.collapse)
    if onset is not None and onset == collapse:
        return [(onset, "degradation begins and collapse", "solid")]
    named = [(collapse, "collapse", "solid"), (onset, "degradation begins", "dash")]
    return sorted(((k, what, dash) for k, what, dash in named if k is not None), reverse=True)


def _add_stages(figure: go.Figure, lines: list[tuple[int, str, str]]) -> None:
    """Vertical lines through both panels where the stages begin, each with its label on top."""
    # Labels are right of their lines; a line further left goes up further, past the other label.
    for place, (k, what, dash) in enumerate(lines):
        x = k or ZERO
        line = {"color": INK, "width": 1.5, "dash": dash}
        figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, yref="paper", line=line)
        figure.add_annotation(
            text=f"{what} at k = {k:,}",
            font={"size": 12, "color": INK},
            x=math.log10(x),
            y=1,
            yref="paper",
            ax=0,
            ay=-6 - _LABEL * place,
            xanchor="left",
            yanchor="bottom",
            arrowhead=0,
            arrowwidth=1.5,
            arrowcolor=INK,
        )

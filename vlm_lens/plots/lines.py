"""Lines over layers (or anything else), several plots one above the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from vlm_lens.plots.axes import log_ticks
from vlm_lens.plots.layout import GRID, MUTED, framed, shown, wrapped

if TYPE_CHECKING:
    import plotly.graph_objects as go

Line = tuple[Sequence[int | float], Sequence[int | float]]
"""x and y; where y is NaN the line has a gap."""

_WIDTH, _HEIGHT, _GAP, _HEAD = 860, 170, 64, 26
_MARGIN = {"l": 70, "r": 190, "t": 30, "b": 50}
_KNOWN = {
    "text": "#0072B2",
    "image": "#D55E00",
    "special": "#009E73",
    "audio": "#7B3F98",
    "video": "#B8578F",
    "special_text": "#3A9BD9",
    "prompt": "#444444",
    "all": "#444444",
    "none": "#222222",
    "clean": "#999999",
}
"""Modalities have the same colour in every figure; after Okabe and Ito."""
_OTHERS = ("#C98500", "#3A9BD9", "#B8578F", "#8C6D00", "#777777", "#7B3F98")
_FEW_POINTS = 40


@dataclass(frozen=True)
class Panel:
    """One of the plots.

    Attributes:
        title: What is on its vertical axis.
        lines: By name.
        dotted: What some of them are compared with, by the line's name.
        reach: Up to where the vertical axis goes at least, such as 1 for a share.
    """

    title: str
    lines: Mapping[str, Line]
    dotted: Mapping[str, Line] = field(default_factory=dict)
    reach: int | float | None = None


def lines(
    panels: Sequence[Panel],
    *,
    title: str,
    x_title: str = "layer",
    log_x: bool = False,
    remarks: Sequence[str] = (),
) -> go.Figure:
    """Draws each panel's lines; a name has the same colour in all of them.

    Args:
        panels: From top to bottom.
        title: The heading.
        x_title: What is on the horizontal axis, which all share.
        log_x: Whether that is logarithmic; its values are shares then, written as percentages.
        remarks: Lines below the heading.

    Raises:
        ValueError: There is nothing to draw.

    Example:
        >>> figure = lines([Panel("share", {"text": ([0, 1], [0.5, 1.0])})], title="demo")
        >>> figure.data[0].name, figure.data[0].y
        ('text', (0.5, 1.0))
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    if not any(panel.lines for panel in panels):
        raise ValueError(f"expected lines to draw, got none: {title}")
    colours = colours_of(name for panel in panels for name in (*panel.lines, *panel.dotted))
    figure = go.Figure(layout=_layout(panels, title, x_title, log_x, remarks))
    listed: set[str] = set()
    for number, panel in enumerate(panels, 1):
        for name, line in panel.lines.items():
            figure.add_trace(_trace(name, line, colours[name], number, name not in listed))
            listed.add(name)
        for name, line in panel.dotted.items():
            figure.add_trace(_trace(name, line, colours[name], number, False, dotted=True))
    return figure


def lines_of(
    rows: Iterable[Mapping[Any, Any]], x: str, y: str, *, by: Sequence[str]
) -> dict[str, Line]:
    """One line for each combination of some columns' values, which "and" joins.

    Args:
        rows: Of a table, as ``frame.to_dict("records")`` gives them.
        x: The column of the horizontal axis.
        y: The column of the vertical one; where several rows have the same x, their mean is drawn.
        by: The columns.

    Example:
        >>> rows = [{"layer": 0, "of": "text", "n": 3.0}, {"layer": 1, "of": "text", "n": 4.0}]
        >>> lines_of(rows, "layer", "n", by=["of"])
        {'text': ([0, 1], [3.0, 4.0])}
    """
    grouped: dict[str, dict[int | float, list[float]]] = {}
    for row in rows:
        at = grouped.setdefault(" and ".join(str(row[name]) for name in by), {})
        at.setdefault(row[x], []).append(row[y])
    return {
        name: (list(at), [fmean(values) for values in at.values()]) for name, at in grouped.items()
    }


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """The colour of each name; modalities have the same one in every figure.

    Example:
        >>> colours_of(["image", "circles"])
        {'image': '#D55E00', 'circles': '#C98500'}
    """
    unique = list(dict.fromkeys(names))
    unknown = [name for name in unique if name not in _KNOWN]
    others = {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(unknown)}
    return {name: _KNOWN.get(name) or others[name] for name in unique}


def _trace(
    name: str, line: Line, colour: str, number: int, in_legend: bool, *, dotted: bool = False
) -> dict[str, Any]:
    x, y = line
    values = [value if math.isfinite(value) else None for value in y]
    return {
        "type": "scatter",
        "x": list(x),
        "y": values,
        "name": wrapped(name, 22),
        "mode": "lines" if dotted or len(values) > _FEW_POINTS else "lines+markers",
        "line": {
            "color": colour,
            "width": 1.6 if dotted else 2.2,
            "dash": "dot" if dotted else "solid",
        },
        "marker": {"size": 6, "color": colour},
        "legendgroup": name,
        "showlegend": in_legend,
        "hovertemplate": f"<b>{shown(name)}</b><br>%{{x}}: %{{y:.4g}}<extra></extra>",
        "xaxis": f"x{number}",
        "yaxis": f"y{number}",
    }


def _layout(
    panels: Sequence[Panel], title: str, x_title: str, log_x: bool, remarks: Sequence[str]
) -> dict[str, Any]:
    inner = _HEIGHT * len(panels) + _GAP * (len(panels) - 1)
    layout = framed(
        title=title,
        remarks=remarks,
        width=_WIDTH,
        height=inner + _MARGIN["t"] + _MARGIN["b"],
        margin=_MARGIN,
    )
    layout["legend"] = {"x": 1.02, "y": 1, "yanchor": "top", "font": {"size": 12}}
    layout["annotations"], top = [], inner
    look = {"gridcolor": GRID, "zeroline": False, "showline": True, "linecolor": MUTED}
    look |= {"ticks": "outside", "tickcolor": MUTED, "tickfont": {"size": 11}}
    for number, panel in enumerate(panels, 1):
        domain = [(top - _HEIGHT) / inner, top / inner]
        layout[f"yaxis{number}"] = {
            **look,
            "domain": domain,
            "anchor": f"x{number}",
            "rangemode": "tozero",
            "range": _y_range(panel),
        }
        is_last = number == len(panels)
        layout[f"xaxis{number}"] = {
            **look,
            **_x_axis(panels, log_x),
            "anchor": f"y{number}",
            "title": {"text": x_title, "font": {"size": 13}} if is_last else None,
        }
        heading = {"text": f"<b>{wrapped(panel.title, 90)}</b>", "x": 0, "y": top / inner}
        place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        layout["annotations"].append({**heading, **place, "yshift": 5, "showarrow": False})
        top -= _HEIGHT + _GAP
    return layout


def _y_range(panel: Panel) -> list[float] | None:
    """From 0 (or below) to what the panel reaches at least; None for plotly's own choice."""
    if panel.reach is None:
        return None
    lines = (*panel.lines.values(), *panel.dotted.values())
    values = [value for _, y in lines for value in y if math.isfinite(value)]
    return [min([0.0, *values]), 1.05 * max([panel.reach, *values])]


def _x_axis(panels: Sequence[Panel], log_x: bool) -> dict[str, Any]:
    values = [
        x for p in panels for line in (*p.lines.values(), *p.dotted.values()) for x in line[0]
    ]
    low, high = min(values), max(values)
    if not log_x:
        pad = max(0.3, 0.02 * (high - low))
        every = max(1, math.ceil((high - low) / 20))
        return {"range": [low - pad, high + pad], "dtick": every, "tick0": 0}
    ticks = log_ticks(low, high)
    return {
        "type": "log",
        "range": [math.log10(low) - 0.05, math.log10(high) + 0.05],
        "tickvals": ticks,
        "ticktext": [f"{100 * tick:g}%" for tick in ticks],
    }

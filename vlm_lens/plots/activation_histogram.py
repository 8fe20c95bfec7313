"""How a neuron's activations are spread, for each type of tokens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from vlm_lens.plots.layout import AXIS, framed, shown
from vlm_lens.plots.lines import colours_of
from vlm_lens.statistics.histograms import Histogram

if TYPE_CHECKING:
    import plotly.graph_objects as go

_WIDTH, _HEIGHT = 760, 300
_MARGIN = {"l": 74, "r": 150, "t": 8, "b": 52}
_NOTHING = 1e-12
"""What stands for 0, which a logarithmic axis does not have."""


def activation_histogram(
    histogram: Histogram,
    *,
    label: str = "activation",
    title: str | None = None,
    log_y: bool = True,
) -> go.Figure:
    """Draws for each type of tokens which share of its positions has which activation.

    Args:
        histogram: Of `vlm_lens.statistics.collect_histograms`, or of activations at hand:
            ``Histogram.of({"image": cache.image(name)[:, 7], "text": ...}, name=...)``.
        label: What the activations are, with their unit.
        title: By default, the histogram's name.
        log_y: Whether shares are on a logarithmic axis: most neurons are near 0 almost everywhere.

    Raises:
        ValueError: No type has any position.

    Example:
        >>> histogram = Histogram.of({"text": np.array([0.0, 0.9, 1.0])}, name="demo", bins=2)
        >>> figure = activation_histogram(histogram)
        >>> figure.data[0].name, [round(float(share), 2) for share in figure.data[0].y]
        ('text (3)', [0.33, 0.33, 0.67, 0.67])
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    counts = {name: row for name, row in histogram.counts.items() if row.sum()}
    if not counts:
        raise ValueError(f"expected activations of {histogram.name}, got none")
    layout = framed(
        title=title or f"Activations of {histogram.name}",
        remarks=["Shares of the positions of each type of tokens."],
        width=_WIDTH,
        height=_HEIGHT + _MARGIN["t"] + _MARGIN["b"],
        margin=_MARGIN,
    )
    layout["xaxis"] = {**AXIS, "title": {"text": shown(label), "font": {"size": 13}}}
    layout["yaxis"] = {
        **AXIS,
        "title": {"text": "share of positions", "font": {"size": 13}},
        "type": "log" if log_y else "linear",
        "tickformat": ".2~%",
    }
    layout["legend"] = {"x": 1.02, "y": 1, "yanchor": "top", "font": {"size": 12}}
    figure = go.Figure(layout=layout)
    lowest = min(row[row > 0].min() / row.sum() for row in counts.values())
    colours = colours_of(counts)
    for name, row in counts.items():
        figure.add_trace(_stairs(name, row, histogram.edges, colours[name], label))
    low, high = (math.log10(lowest / 2), 0.05) if log_y else (0, 1.02)
    figure.update_yaxes(range=[low, high])
    return figure


def _stairs(
    name: str,
    row: Int[np.ndarray, " bins"],
    edges: Float[np.ndarray, " edges"],
    colour: str,
    label: str,
) -> dict[str, Any]:
    """A line that is level over each bin; a bin without positions is at (nearly) 0."""
    total = int(row.sum())
    share = np.where(row > 0, row / total, _NOTHING)
    about = np.stack([edges[:-1], edges[1:], row, row / total], axis=1)
    return {
        "type": "scatter",
        "name": f"{shown(name)} ({total:,})",
        "mode": "lines",
        "x": np.repeat(edges, 2)[1:-1],
        "y": np.repeat(share, 2),
        "line": {"color": colour, "width": 1.8},
        "customdata": np.repeat(about, 2, axis=0),
        "hovertemplate": f"<b>{shown(name)}</b><br>{shown(label)} %{{customdata[0]:.4g}} to "
        "%{customdata[1]:.4g}<br>%{customdata[2]:,} positions, %{customdata[3]:.3~%}"
        "<extra></extra>",
    }

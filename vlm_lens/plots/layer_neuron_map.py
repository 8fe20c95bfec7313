"""One number for each neuron of many layers, one row for each hook point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vlm_lens.plots import style
from vlm_lens.plots.layout import MUTED, framed, shown, wrapped
from vlm_lens.plots.sampling import evenly

if TYPE_CHECKING:
    import plotly.graph_objects as go

Order = Literal["value", "index"]
Values = Shaped[Tensor, " neuron"] | Shaped[np.ndarray, " neuron"]

_MOST_COLUMNS, _MOST_ROWS = 780, 120
_ROOM, _ROW, _LEAST_HEIGHT = 780, 22, 90
_MARGIN = {"l": 290, "r": 110, "t": 8, "b": 56}
_LONGEST = 42
_USUAL = 0.99
"""Few neurons are far larger than all others: the colours end where this share of them does."""


def layer_neuron_map(
    values: Mapping[str, Values],
    *,
    label: str,
    title: str | None = None,
    order: Order = "value",
    limit: float | None = None,
) -> go.Figure:
    """Draws any number that each neuron has: one row for each hook point.

    Where a hook point has more than 780 neurons, several neighbours share a cell, which shows the
    value of the one that is furthest from 0.

    Args:
        values: By hook name, one number for each neuron: of ``statistics.max``, the scores of an
            attribution, of CAN, ... NaN is left blank.
        label: What the values are, with their unit.
        title: By default, the label and how many neurons there are.
        order: With "value" each row is sorted, largest first, which shows how the values are
            spread; with "index" neurons stay in their places, which by themselves mean nothing.
        limit: The magnitude that gets the full colour. By default 99% of the neurons are below it:
            a few are often far larger than all others.

    Raises:
        ValueError: There is nothing to draw, or no such order.

    Example:
        >>> figure = layer_neuron_map(
        ...     {"blocks.0.mlp.hook_act": np.array([0.5, 3.0])}, label="effect (logits)")
        >>> figure.data[0].z.tolist(), figure.data[0].customdata.tolist()
        ([[3.0, 0.5]], [[1, 0]])
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    if order not in get_args(Order):
        raise ValueError(f"unknown order {order!r}: expected one of {get_args(Order)}")
    rows = {name: style.to_numpy(row) for name, row in values.items() if len(row)}
    if not rows:
        raise ValueError("expected values of neurons, got none")
    names = [list(rows)[i] for i in evenly(len(rows), _MOST_ROWS)]
    longest = max(len(rows[name]) for name in names)
    share = -(-longest // _MOST_COLUMNS)
    cells, neurons = _table([rows[name] for name in names], order, share)
    every = np.concatenate([rows[name] for name in names])
    limit = limit or _limit(every)
    remarks = [
        _beyond(every, limit),
        f"Each cell shows one of {share} neighbouring neurons: the one furthest from 0."
        * (share > 1),
        f"{len(names)} of {len(rows)} hook points, evenly apart." * (len(names) < len(rows)),
    ]
    n = sum(map(len, rows.values()))
    figure = go.Figure(
        layout=_layout(title or f"{label} of {n:,} neurons", names, remarks, order, share, cells)
    )
    figure.add_trace(_heatmap(cells, neurons, names, label, limit, share))
    return figure


def _limit(values: Float[np.ndarray, " neuron"]) -> float:
    """The magnitude that gets the full colour."""
    sizes = np.abs(values[np.isfinite(values)])
    usual = float(np.quantile(sizes, _USUAL)) if len(sizes) >= 1 / (1 - _USUAL) else 0.0
    return usual or style.colour_limit(values)


def _beyond(values: Float[np.ndarray, " neuron"], limit: float) -> str:
    """What has the full colour although it is larger."""
    beyond = int((np.abs(np.nan_to_num(values)) > limit).sum())
    if not beyond:
        return ""
    return (
        f"Full colour from {limit:.3g} on; {beyond:,} neurons are beyond it, up to "
        f"{style.colour_limit(values):.3g}."
    )


def _cut(name: str) -> str:
    """A hook name that fits beside its row."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _table(
    rows: list[Float[np.ndarray, " _neuron"]], order: Order, share: int
) -> tuple[Float[np.ndarray, "row column"], Int[np.ndarray, "row column"]]:
    """The values of the cells, and the neuron that each one shows."""
    n_columns = max(-(-len(row) // share) for row in rows)
    cells = np.full((len(rows), n_columns), np.nan)
    neurons = np.full(cells.shape, -1)
    for i, row in enumerate(rows):
        sequence = np.arange(len(row))
        if order == "value":
            sequence = np.argsort(-np.nan_to_num(row, nan=-np.inf), kind="stable")
        padded = np.full(n_columns * share, -1)
        padded[: len(row)] = sequence
        grouped = padded.reshape(n_columns, share)
        sizes = np.where(grouped >= 0, np.abs(np.nan_to_num(row))[grouped], -1.0)
        neurons[i] = grouped[np.arange(n_columns), sizes.argmax(1)]
        there = neurons[i] >= 0
        cells[i, there] = row[neurons[i, there]]
    return cells, neurons


def _layout(
    title: str,
    names: list[str],
    remarks: list[str],
    order: Order,
    share: int,
    cells: Float[np.ndarray, "row column"],
) -> dict[str, Any]:
    layout = framed(
        title=title,
        remarks=remarks,
        width=_ROOM + _MARGIN["l"] + _MARGIN["r"],
        height=max(_ROW * len(names), _LEAST_HEIGHT) + _MARGIN["t"] + _MARGIN["b"],
        margin=_MARGIN,
    )
    axis = {"showgrid": False, "zeroline": False}
    by_value = "rank of the neuron in its row (0 = largest value)"
    layout["xaxis"] = {
        **axis,
        "title": {"text": by_value if order == "value" else "neuron", "font": {"size": 13}},
        "range": [-share / 2, (cells.shape[1] - 0.5) * share],
        "ticks": "outside",
        "tickcolor": MUTED,
    }
    layout["yaxis"] = {
        **axis,
        "tickvals": list(range(len(names))),
        "ticktext": [shown(_cut(name)) for name in names],
        "tickfont": {"size": 11},
        "range": [len(names) - 0.5, -0.5],
        "title": {"text": "hook point", "font": {"size": 13}},
    }
    layout["plot_bgcolor"] = "#eceff1"
    return layout


def _heatmap(
    cells: Float[np.ndarray, "row column"],
    neurons: Int[np.ndarray, "row column"],
    names: list[str],
    label: str,
    limit: float,
    share: int,
) -> dict[str, Any]:
    low, high = style.value_range(np.nan_to_num(cells), limit)
    return {
        "type": "heatmap",
        "z": cells,
        "x": np.arange(cells.shape[1]) * share,
        "y": np.arange(len(names)),
        "zmin": low,
        "zmax": high,
        "colorscale": style.on_white(low),
        "customdata": neurons,
        "hovertemplate": f"<b>%{{y}}[%{{customdata}}]</b><br>{shown(label)} <b>%{{z:.4g}}</b>"
        "<extra></extra>",
        "hoverongaps": False,
        "ygap": 2 if len(names) < _MOST_ROWS / 2 else 0,
        "colorbar": {
            "title": {"text": wrapped(label, 16), "font": {"size": 12, "color": MUTED}},
            "thickness": 12,
            "outlinewidth": 0,
        },
    }

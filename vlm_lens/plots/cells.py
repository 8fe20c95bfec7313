"""A small table in colours, with what each cell says written into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vlm_lens.plots import style
from vlm_lens.plots.layout import INK, MUTED, framed, wrapped

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CELL, _ROW = 185, 56
_MARGIN = {"l": 150, "r": 110, "t": 56, "b": 40}
_EMPTY = "#eceff1"


@dataclass(frozen=True)
class Cell:
    """One cell of the table.

    Attributes:
        row: The name of its row.
        column: Likewise.
        value: What its colour shows.
        text: What is written into it, ready for plotly.
        hint: What it says when pointed at, ready for plotly.
    """

    row: str
    column: str
    value: int | float
    text: str
    hint: str


def cells(
    entries: Sequence[Cell],
    *,
    rows: Mapping[str, str],
    columns: Mapping[str, str],
    title: str,
    colour_title: str,
    row_title: str = "",
    column_title: str = "",
    remarks: Sequence[str] = (),
) -> go.Figure:
    """Draws the cells: orange is positive, blue is negative, white is 0, and what is missing grey.

    Args:
        entries: What is drawn.
        rows: What each row is called, by its name; from top to bottom.
        columns: Likewise, from left to right.
        title: The heading.
        colour_title: What the colours show, with the unit.
        row_title: What the rows are.
        column_title: What the columns are.
        remarks: Lines below the heading.

    Example:
        >>> figure = cells(
        ...     [Cell("a", "b", 0.5, "50", "half")], rows={"a": "A"}, columns={"b": "B"},
        ...     title="demo", colour_title="share",
        ... )
        >>> figure.data[0].zmax, figure.layout.yaxis.ticktext
        (0.5, ('A',))
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    values, texts, hints = _spread(entries, list(rows), list(columns))
    n_rows, n_columns = values.shape
    layout = framed(
        title=title,
        remarks=remarks,
        width=max(_CELL * n_columns, 300) + _MARGIN["l"] + _MARGIN["r"],
        height=max(_ROW * n_rows, 120) + _MARGIN["t"] + _MARGIN["b"],
        margin=_MARGIN,
    )
    axis = {"showgrid": False, "zeroline": False, "tickfont": {"size": 13}}
    layout["plot_bgcolor"] = _EMPTY
    layout["xaxis"] = {
        **axis,
        "side": "top",
        "tickvals": list(range(n_columns)),
        "ticktext": [wrapped(name, 20) for name in columns.values()],
        "title": {"text": wrapped(column_title, 60), "font": {"size": 13, "color": MUTED}},
    }
    layout["yaxis"] = {
        **axis,
        "tickvals": list(range(n_rows)),
        "ticktext": [wrapped(name, 18) for name in rows.values()],
        "range": [n_rows - 0.5, -0.5],
        "title": {"text": wrapped(row_title, 30), "font": {"size": 13, "color": MUTED}},
    }
    limit = style.colour_limit(values)
    low, high = style.value_range(np.nan_to_num(values), limit)
    figure = go.Figure(layout=layout)
    figure.add_heatmap(
        z=values,
        zmin=low,
        zmax=high,
        colorscale=style.on_white(low),
        text=texts,
        texttemplate="%{text}",
        textfont={"size": 12, "color": INK},
        customdata=hints,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=2,
        ygap=2,
        colorbar={
            "title": {"text": wrapped(colour_title, 16), "font": {"size": 12, "color": MUTED}},
            "thickness": 12,
            "outlinewidth": 0,
        },
    )
    return figure


def _spread(
    entries: Sequence[Cell], rows: list[str], columns: list[str]
) -> tuple[Float[np.ndarray, "row column"], np.ndarray, np.ndarray]:
    """Values, texts and hints by row and column; NaN and nothing where there is no cell."""
    values = np.full((len(rows), len(columns)), np.nan)
    texts, hints = (np.full(values.shape, "", dtype=object) for _ in range(2))
    for cell in entries:
        at = rows.index(cell.row), columns.index(cell.column)
        values[at], texts[at], hints[at] = cell.value, cell.text, cell.hint
    return values, texts, hints

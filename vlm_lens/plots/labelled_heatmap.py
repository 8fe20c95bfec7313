"""A small table in colours, with what each cell says written into it."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, eq=False)
class Cells:
    """What is in the table.

    Attributes:
        rows: Their names.
        columns: Likewise.
        values: What the colours show; NaN where there is nothing.
        texts: What is written into each cell, ready for plotly.
        hints: What each cell says when pointed at, ready for plotly.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Float[np.ndarray, "row column"]
    texts: Sequence[Sequence[str]]
    hints: Sequence[Sequence[str]]


def labelled_heatmap(
    cells: Cells,
    *,
    title: str,
    row_title: str,
    column_title: str,
    colour_title: str,
    remarks: Sequence[str] = (),
) -> go.Figure:
    """Draws the cells: orange is positive, blue is negative, white is 0.

    Args:
        cells: What is drawn.
        title: The heading.
        row_title: What the rows are.
        column_title: What the columns are.
        colour_title: What the colours show, with the unit.
        remarks: Lines below the heading.

    Example:
        >>> cells = Cells(["a"], ["b"], np.array([[0.5]]), [["50"]], [["half"]])
        >>> figure = labelled_heatmap(
        ...     cells, title="demo", row_title="", column_title="", colour_title="share"
        ... )
        >>> figure.data[0].zmax
        0.5
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    n_rows, n_columns = cells.values.shape
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
        "ticktext": [wrapped(name, 20) for name in cells.columns],
        "title": {"text": wrapped(column_title, 60), "font": {"size": 13, "color": MUTED}},
    }
    layout["yaxis"] = {
        **axis,
        "tickvals": list(range(n_rows)),
        "ticktext": [wrapped(name, 18) for name in cells.rows],
        "range": [n_rows - 0.5, -0.5],
        "title": {"text": wrapped(row_title, 30), "font": {"size": 13, "color": MUTED}},
    }
    limit = style.colour_limit(cells.values)
    low, high = style.value_range(np.nan_to_num(cells.values), limit)
    figure = go.Figure(layout=layout)
    figure.add_heatmap(
        z=cells.values,
        zmin=low,
        zmax=high,
        colorscale=style.on_white(low),
        text=np.array(cells.texts),
        texttemplate="%{text}",
        textfont={"size": 12, "color": INK},
        customdata=np.array(cells.hints),
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

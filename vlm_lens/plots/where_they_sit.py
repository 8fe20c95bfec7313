"""Where in a model the neurons of a set are: component, layer and matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.places import places
from vlm_lens.plots import style
from vlm_lens.plots.axes import log_ticks, written
from vlm_lens.plots.layout import INK, MUTED, framed, shown, wrapped

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ROW, _GAP = 30, 72
_NARROWEST, _WIDEST, _ROOM = 20, 46, 760
_MARGIN = {"l": 140, "r": 100, "t": 34, "b": 52}
_COLOUR_BAR = 170
_NONE = "#eceff1"
_FIRST_MATRICES = (
    *("gate", "up", "down", "fc1", "fc2", "linear", "linear_1", "linear_2"),
    *("mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_act", "mlp.hook_post", "hook_mlp_out"),
)
_NO_LAYER = -1
_MOST_LISTED = 48


@dataclass(frozen=True)
class _Spot:
    """One hook point.

    Attributes:
        component: Where it is.
        layer: Likewise; -1 outside of blocks.
        matrix: Likewise.
        name: Its name.
        size: How many neurons it has; None if that is not known.
        indices: Those that are in the set.
    """

    component: str
    layer: int
    matrix: str
    name: str
    size: int | None
    indices: list[int]


@dataclass(frozen=True, eq=False)
class _Grid:
    """One component.

    Attributes:
        title: Above it, ready for plotly.
        layers: Of the columns; -1 for what is in no layer.
        matrices: Of the rows.
        counts: How many neurons are in each cell; NaN where there is no such hook point.
        hints: What each cell says, ready for plotly.
    """

    title: str
    layers: list[int]
    matrices: list[str]
    counts: np.ndarray
    hints: np.ndarray


def where_they_sit(
    neurons: NeuronSet,
    *,
    sizes: Mapping[str, int] | None = None,
    matrices: Mapping[str, str] | None = None,
    what: str = "",
    title: str | None = None,
) -> go.Figure:
    """Draws for each component how many neurons are in each layer and matrix.

    Grey cells are hook points without such a neuron; where nothing is drawn, none is known.

    Args:
        neurons: The set.
        sizes: The number of neurons at each hook point of interest; by default what the set knows.
        matrices: The matrix of each hook point, e.g. ``matrices_of(names, model.hook_dict)``. Where
            it is not known, the site is shown.
        what: Which neurons these are, e.g. "critical".
        title: By default, how many there are.

    Raises:
        ValueError: There is neither a neuron nor a size.

    Example:
        >>> neurons = NeuronSet.from_indices({"projector.hook_out": [3], "blocks.1.hook_mlp_out":
        ...     [0, 2]}, sizes={"blocks.1.hook_mlp_out": 8, "projector.hook_out": 8})
        >>> figure = where_they_sit(neurons)
        >>> [heatmap.text.tolist() for heatmap in figure.data]
        [[['1']], [['', '2']]]
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    grids = _grids(neurons, {**neurons.sizes, **(sizes or {})}, matrices or {}, what)
    figure = go.Figure(layout=_layout(grids, title or f"Where {len(neurons):,} neurons sit"))
    most = max(float(np.nanmax(grid.counts)) for grid in grids)
    for number, grid in enumerate(grids, 1):
        figure.add_trace(_heatmap(grid, number, most))
    return figure


# What is drawn ------------------------------------------------------------------------------------


def _grids(
    neurons: NeuronSet, sizes: Mapping[str, int], matrices: Mapping[str, str], what: str
) -> list[_Grid]:
    """The components from images to text."""
    table = places(neurons, sizes=sizes, matrices=matrices)
    if table.empty:
        raise ValueError("expected neurons to draw, got none: pass sizes to draw an empty model.")
    indices = {name: at.tolist() for name, at in neurons.indices.items()}
    spots = [
        _Spot(
            component=str(row["component"]),
            layer=_NO_LAYER if pd.isna(row["layer"]) else int(row["layer"]),
            matrix=str(row["matrix"]),
            name=str(row["name"]),
            size=None if pd.isna(row["neurons"]) else int(row["neurons"]),
            indices=indices.get(str(row["name"]), []),
        )
        for row in table.to_dict("records")
    ]
    components = dict.fromkeys(spot.component for spot in spots)
    return [_grid([s for s in spots if s.component == c], what) for c in components]


def _grid(spots: list[_Spot], what: str) -> _Grid:
    """One component's."""
    present = {spot.layer for spot in spots}
    layers = [*([_NO_LAYER] if _NO_LAYER in present else []), *range(max(present) + 1)]
    matrices = sorted({spot.matrix for spot in spots}, key=_matrix_order)
    counts = np.full((len(matrices), len(layers)), np.nan)
    hints = np.full(counts.shape, "", dtype=object)
    for row, matrix in enumerate(matrices):
        for column, layer in enumerate(layers):
            here = [spot for spot in spots if (spot.matrix, spot.layer) == (matrix, layer)]
            if here:
                counts[row, column] = sum(len(spot.indices) for spot in here)
                hints[row, column] = _hint(here, what)
    title = f"<b>{shown(spots[0].component)}</b>  {_share(spots, what)}"
    return _Grid(title, layers, matrices, counts, hints)


def _matrix_order(matrix: str) -> tuple[int, str]:
    known = matrix in _FIRST_MATRICES
    return _FIRST_MATRICES.index(matrix) if known else len(_FIRST_MATRICES), matrix


def _share(spots: list[_Spot], what: str) -> str:
    """How many are here, and of how many if that is known."""
    count = f"{sum(len(spot.indices) for spot in spots):,}"
    sizes = [spot.size for spot in spots if spot.size is not None]
    if len(sizes) < len(spots):
        return f"{count} {what or 'neurons'}"
    return f"{count} of {sum(sizes):,} neurons {what}".rstrip()


def _hint(spots: list[_Spot], what: str) -> str:
    """What is in one cell: which neurons of each hook point, best first."""
    first = spots[0]
    layer = [] if first.layer == _NO_LAYER else [f"layer {first.layer}"]
    where = ", ".join([first.component, *layer, first.matrix])
    lines = [f"<b>{shown(where)}</b>", _share(spots, what)]
    for spot in spots:
        more = len(spot.indices) - _MOST_LISTED
        listed = ", ".join(map(str, spot.indices[:_MOST_LISTED]))
        text = f"{spot.name}: {listed}" + (f" and {more:,} more" if more > 0 else "")
        lines += [wrapped(text, 70)] if spot.indices else []
    return "<br>".join(lines)


# How it is drawn ----------------------------------------------------------------------------------


def _layout(grids: list[_Grid], title: str) -> dict[str, Any]:
    columns = max(len(grid.layers) for grid in grids)
    cell = min(max(_ROOM // columns, _NARROWEST), _WIDEST)
    width = max(cell * columns, 420)
    height = sum(_ROW * len(grid.matrices) for grid in grids) + _GAP * (len(grids) - 1)
    margin = {**_MARGIN, "b": max(_MARGIN["b"], _COLOUR_BAR - height)}
    layout = framed(
        title=title,
        remarks=[],
        width=width + margin["l"] + margin["r"],
        height=height + margin["t"] + margin["b"],
        margin=margin,
    )
    layout["annotations"], top = [], height
    for number, grid in enumerate(grids, 1):
        bottom = top - _ROW * len(grid.matrices)
        layout[f"xaxis{number}"] = _x_axis(grid, cell) | {
            "domain": [0, cell * len(grid.layers) / width],
            "anchor": f"y{number}",
        }
        layout[f"yaxis{number}"] = _y_axis(grid) | {
            "domain": [bottom / height, top / height],
            "anchor": f"x{number}",
        }
        heading = {"text": grid.title, "x": 0, "y": top / height, "yshift": 4, "showarrow": False}
        place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        layout["annotations"].append(heading | place)
        top = bottom - _GAP
    return layout


def _x_axis(grid: _Grid, cell: int) -> dict[str, Any]:
    every = max(1, math.ceil(26 / cell))
    ticks = [i for i, layer in enumerate(grid.layers) if layer == _NO_LAYER or layer % every == 0]
    labels = ["–" if grid.layers[i] == _NO_LAYER else str(grid.layers[i]) for i in ticks]
    is_layered = grid.layers[-1] != _NO_LAYER
    return {
        "title": {"text": "layer", "standoff": 4, "font": {"size": 12}} if is_layered else None,
        "tickvals": ticks,
        "ticktext": labels if is_layered else ["not in layers"],
        "range": [-0.5, len(grid.layers) - 0.5],
        "showgrid": False,
        "zeroline": False,
        "tickfont": {"size": 11},
    }


def _y_axis(grid: _Grid) -> dict[str, Any]:
    n = len(grid.matrices)
    return {
        "tickvals": list(range(n)),
        "ticktext": [wrapped(name, 20) for name in grid.matrices],
        "range": [n - 0.5, -0.5],
        "showgrid": False,
        "zeroline": False,
        "tickfont": {"size": 12},
    }


def _heatmap(grid: _Grid, number: int, most: float) -> dict[str, Any]:
    """Colours by the logarithm of the counts: they go from one to thousands."""
    top = math.log10(max(most, 10))
    low = -0.2 * top  # the colour of zero takes what is below half of this
    colour = np.where(grid.counts > 0, np.log10(np.maximum(grid.counts, 1)), low)
    edge = -low / 2 / (top - low)
    faint, full = style.css(style.POSITIVE, 0.22), style.css(style.POSITIVE, style.STRONGEST)
    powers = [tick for tick in log_ticks(1, max(most, 10)) if math.log10(tick) % 1 == 0]
    return {
        "type": "heatmap",
        "z": np.where(np.isnan(grid.counts), np.nan, colour),
        "zmin": low,
        "zmax": top,
        "colorscale": [(0, _NONE), (edge, _NONE), (edge, faint), (1, full)],
        "text": np.array([[_label(count) for count in row] for row in grid.counts]),
        "texttemplate": "%{text}",
        "textfont": {"size": 11, "color": INK},
        "customdata": grid.hints,
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "xgap": 2,
        "ygap": 2,
        "xaxis": f"x{number}",
        "yaxis": f"y{number}",
        "showscale": number == 1 and most > 0,
        "colorbar": {
            "title": {"text": "neurons", "font": {"size": 12, "color": MUTED}},
            "tickvals": [low * 0.75, *map(math.log10, powers)],
            "ticktext": ["0", *map(written, powers)],
            "thickness": 12,
            "outlinewidth": 0,
            "lenmode": "pixels",
            "len": _COLOUR_BAR,
            "y": 1,
            "yanchor": "top",
        },
    }


def _label(count: float) -> str:
    """A count in at most four letters; none where there is nothing."""
    if not count > 0:
        return ""
    return f"{count:.0f}" if count < 1000 else f"{count / 1000:.0f}k"

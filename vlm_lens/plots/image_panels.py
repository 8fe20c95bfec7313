"""Heat maps over one image, several side by side, all in the same colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vlm_lens.plots import style
from vlm_lens.plots.layout import INK, MUTED, framed, shown, wrapped

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ONE, _FEW, _MANY = 420, 250, 168
_GAP, _HEAD = 14, 26
_MARGIN = {"l": 14, "r": 110, "t": 4, "b": 14}
_NARROWEST = 560
_LONGEST_BAR = 360


@dataclass(frozen=True, eq=False)
class Panel:
    """One of the heat maps.

    Attributes:
        title: Above it.
        values: What the colours show; NaN is left blank.
        cells: What `hover` reads of each cell.
    """

    title: str
    values: Float[np.ndarray, "rows cols"]
    cells: Float[np.ndarray, "rows cols numbers"]


def image_panels(
    picture: Image.Image,
    panels: Sequence[Panel],
    *,
    x: Float[np.ndarray, " x_edges"],
    y: Float[np.ndarray, " y_edges"],
    title: str,
    label: str,
    hover: str,
    remarks: Sequence[str] = (),
    limit: float | None = None,
    outline: tuple[float, float, float, float] | None = None,
    side: int | None = None,
) -> go.Figure:
    """Draws heat maps over an image, which is shown in pale grey.

    Args:
        picture: The original image.
        panels: From left to right, then from top to bottom.
        x: The cells' borders from left to right, in pixels of the image.
        y: Likewise from top to bottom.
        title: The heading.
        label: What the values are, with their unit.
        hover: What is said where a cell is pointed at, as plotly's template.
        remarks: Lines below the heading.
        limit: The magnitude that gets the full colour; by default the largest value.
        outline: A box that every panel shows the border of, in pixels of the image.
        side: How long the longer side of a panel is, in pixels of the page.

    Example:
        >>> panel = Panel("head 0", np.eye(2), np.zeros((2, 2, 1)))
        >>> edges = np.array([0.0, 4.0, 8.0])
        >>> figure = image_panels(Image.new("RGB", (8, 8)), [panel], x=edges, y=edges,
        ...     title="demo", label="share", hover="%{z}")
        >>> figure.data[0].zmax, figure.layout.images[0].sizex
        (1.0, 8)
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    every = np.concatenate([panel.values.ravel() for panel in panels])
    low, high = style.value_range(np.nan_to_num(every), limit or style.colour_limit(every))
    bar = {
        "title": {"text": wrapped(label, 16), "font": {"size": 12, "color": MUTED}},
        "thickness": 12,
        "outlinewidth": 0,
        "lenmode": "pixels",
        "len": min(side or _side(len(panels)), _LONGEST_BAR) + _HEAD,
        "y": 1,
        "yanchor": "top",
    }
    figure = go.Figure(layout=_layout(picture, panels, title, remarks, outline, side))
    for number, panel in enumerate(panels, 1):
        trace = {
            "type": "heatmap",
            "name": shown(panel.title),
            "z": panel.values,
            "x": x,
            "y": y,
            "zmin": low,
            "zmax": high,
            "colorscale": style.colour_stops(low),
            "showscale": number == 1,
            "colorbar": bar,
            "customdata": panel.cells,
            "hovertemplate": hover + "<extra></extra>",
            "hoverongaps": False,
            "xaxis": f"x{number}",
            "yaxis": f"y{number}",
        }
        figure.add_trace(trace)
    return figure


def _side(n: int) -> int:
    """The longer side of each panel, in pixels."""
    return _ONE if n == 1 else _FEW if n <= 4 else _MANY


def _layout(
    picture: Image.Image,
    panels: Sequence[Panel],
    title: str,
    remarks: Sequence[str],
    outline: tuple[float, float, float, float] | None,
    side: int | None,
) -> dict[str, Any]:
    n, side = len(panels), side or _side(len(panels))
    scale = side / max(picture.size)
    width, height = (max(round(edge * scale), 24) for edge in picture.size)
    cols = min(n, max(1, (4 * _FEW) // max(width, 60)))
    rows = math.ceil(n / cols)
    inner_width = max(cols * width + (cols - 1) * _GAP, _NARROWEST - _MARGIN["l"] - _MARGIN["r"])
    inner_height = rows * (height + _HEAD) + (rows - 1) * _GAP
    layout = framed(
        title=title,
        remarks=remarks,
        width=inner_width + _MARGIN["l"] + _MARGIN["r"],
        height=inner_height + _MARGIN["t"] + _MARGIN["b"],
        margin=_MARGIN,
    )
    layout |= {"images": [], "annotations": [], "shapes": []}
    source = style.data_uri(style.backdrop(_shrunk(picture, 2 * side)))
    for number, panel in enumerate(panels, 1):
        row, col = divmod(number - 1, cols)
        left, top = col * (width + _GAP), inner_height - row * (height + _HEAD + _GAP) - _HEAD
        domains = (
            [left / inner_width, (left + width) / inner_width],
            [(top - height) / inner_height, top / inner_height],
        )
        layout |= _axes(picture, number, *domains)
        layout["images"].append(_background(picture, source, number))
        layout["annotations"].append(_heading(panel.title, domains[0][0], domains[1][1], width))
        if outline is not None:
            layout["shapes"].append(_outlined(outline, number))
    return layout


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    """The same picture, or a smaller one: every panel carries it."""
    small = picture.copy()
    small.thumbnail((side, side))
    return small


def _axes(
    picture: Image.Image, number: int, x_domain: list[float], y_domain: list[float]
) -> dict[str, Any]:
    hidden = {"showgrid": False, "zeroline": False, "visible": False}
    width, height = picture.size
    return {
        f"xaxis{number}": {
            **hidden,
            "range": [0, width],
            "domain": x_domain,
            "anchor": f"y{number}",
            "constrain": "domain",
        },
        f"yaxis{number}": {
            **hidden,
            "range": [height, 0],
            "domain": y_domain,
            "anchor": f"x{number}",
            "constrain": "domain",
            "scaleanchor": f"x{number}",
        },
    }


def _background(picture: Image.Image, source: str, number: int) -> dict[str, Any]:
    return {
        "source": source,
        "xref": f"x{number}",
        "yref": f"y{number}",
        "x": 0,
        "y": 0,
        "sizex": picture.width,
        "sizey": picture.height,
        "sizing": "stretch",
        "layer": "below",
    }


def _heading(title: str, x: float, y: float, width: int) -> dict[str, Any]:
    place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    text = shown(title)
    return {
        **place,
        "x": x,
        "y": y,
        "text": text,
        "showarrow": False,
        "yshift": 1,
        "font": {"size": 13 if width > _MANY else 12, "color": INK},
    }


def _outlined(box: tuple[float, float, float, float], number: int) -> dict[str, Any]:
    x0, y0, x1, y1 = box
    return {
        "type": "rect",
        "xref": f"x{number}",
        "yref": f"y{number}",
        "x0": x0,
        "y0": y0,
        "x1": x1,
        "y1": y1,
        "line": {"color": INK, "width": 2},
    }

"""A neuron's activations as a heat map over the image, patch by patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from vlm_lens.inputs import PatchGrid, load_image
from vlm_lens.inputs.images import ImageSource
from vlm_lens.plots import style
from vlm_lens.plots.layout import framed, shown, wrapped
from vlm_lens.plots.sampling import evenly

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HEIGHT, _NARROWEST, _FLATTEST = 364, 300, 3
_MARGIN = {"l": 14, "r": 110, "t": 4, "b": 14}
_MOST_CELLS = 256
"""Along each side; more cannot be told apart on a page."""
_HOVER = (
    "row %{customdata[0]}, column %{customdata[1]}<br>"
    "x %{customdata[2]:.0f} to %{customdata[4]:.0f}, y %{customdata[3]:.0f} to %{customdata[5]:.0f}"
    "<br>LABEL <b>%{z:.4g}</b><extra></extra>"
)


def neuron_over_image(
    image: ImageSource,
    values: Shaped[Tensor, "rows cols"] | Shaped[np.ndarray, "rows cols"],
    *,
    grid: PatchGrid | None = None,
    label: str = "activation",
    title: str | None = None,
    limit: float | None = None,
) -> go.Figure:
    """Draws one value per patch over an image.

    The image is shown in pale grey, so that its own colours are not taken for values.

    Args:
        image: The original image, as any source that `load_image` reads.
        values: One number per patch, e.g. from `TokenMap.grid_values`; NaN is left blank.
        grid: Where the patches lie, e.g. ``inputs.token_map[0].grid()``. Without it the values
            cover the whole image evenly, as those of `TokenMap.heatmap` do; of more than 256 rows
            or columns some are drawn, evenly apart.
        label: What the values are, with their unit, for the colour bar.
        title: Above the figure, e.g. the neuron's name; by default the label.
        limit: The magnitude that gets the full colour, to give several figures one scale; by
            default the largest of these values.

    Raises:
        ValueError: The values do not have one number per patch, or the image does not have the
            size that the grid is for.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> figure = neuron_over_image(Image.new("RGB", (60, 40)), np.eye(2), title="neuron 7")
        >>> figure.data[0].x.tolist()
        [0.0, 30.0, 60.0]
    """
    import plotly.graph_objects as go  # a fifth of a second that the report does not need

    picture, heat = load_image(image), style.to_numpy(values)
    remark = ""
    if grid is None and max(heat.shape) > _MOST_CELLS:
        remark = f"{_MOST_CELLS} of {max(heat.shape)} rows or columns, evenly apart."
        heat = heat[np.ix_(*(evenly(n, _MOST_CELLS) for n in heat.shape))]
    x, y = _edges(picture, heat, grid)
    low, high = style.value_range(heat, limit or style.colour_limit(heat))
    heatmap = go.Heatmap(
        z=heat,
        x=x,
        y=y,
        zmin=low,
        zmax=high,
        colorscale=style.colour_stops(low),
        colorbar={"title": {"text": wrapped(label, 16)}, "thickness": 12, "outlinewidth": 0},
        customdata=_cells(x, y),
        hovertemplate=_HOVER.replace("LABEL", shown(label)),
        hoverongaps=False,
    )
    return go.Figure(heatmap, _layout(picture, title or f"{label} by patch", remark))


def _edges(
    picture: Image.Image, heat: Float[np.ndarray, "rows cols"], grid: PatchGrid | None
) -> tuple[Float[np.ndarray, " cols+1"], Float[np.ndarray, " rows+1"]]:
    """The x of the patches' left and right borders, and the y of their upper and lower ones."""
    rows, cols = heat.shape
    if grid is None:
        return np.linspace(0, picture.width, cols + 1), np.linspace(0, picture.height, rows + 1)
    if (grid.rows, grid.cols) != heat.shape:
        raise ValueError(
            f"expected {grid.rows} rows and {grid.cols} columns of values, one per patch, got "
            f"{rows} rows and {cols} columns"
        )
    if grid.transform.original_size != picture.size:
        raise ValueError(
            f"the grid is for an image of {grid.transform.original_size} pixels, but this one has "
            f"{picture.size}: pass the original image, e.g. inputs.images[0][0]"
        )
    last = grid.box(rows - 1, cols - 1)
    x = [grid.box(0, col)[0] for col in range(cols)] + [last[2]]
    y = [grid.box(row, 0)[1] for row in range(rows)] + [last[3]]
    return np.array(x), np.array(y)


def _cells(
    x: Float[np.ndarray, " x_edges"], y: Float[np.ndarray, " y_edges"]
) -> Float[np.ndarray, "y_edges-1 x_edges-1 6"]:
    """Row, column and box of each patch, for the hover text."""
    row, col = np.meshgrid(np.arange(len(y) - 1), np.arange(len(x) - 1), indexing="ij")
    return np.stack([row, col, x[col], y[row], x[col + 1], y[row + 1]], axis=-1).astype(np.float64)


def _layout(picture: Image.Image, title: str, remark: str) -> dict:
    width, height = picture.size
    inner = max(round(_HEIGHT * min(width / height, _FLATTEST)), _NARROWEST)
    hidden = {"showgrid": False, "zeroline": False, "visible": False, "constrain": "domain"}
    background = {
        "source": style.data_uri(style.backdrop(picture)),
        "xref": "x",
        "yref": "y",
        "x": 0,
        "y": 0,
        "sizex": width,
        "sizey": height,
        "sizing": "stretch",
        "layer": "below",
    }
    frame = framed(
        title=title,
        remarks=[remark],
        width=inner + _MARGIN["l"] + _MARGIN["r"],
        height=_HEIGHT + _MARGIN["t"] + _MARGIN["b"],
        margin=_MARGIN,
    )
    return {
        **frame,
        "images": [background],
        "xaxis": {**hidden, "range": [0, width]},
        "yaxis": {**hidden, "range": [height, 0], "scaleanchor": "x"},
    }

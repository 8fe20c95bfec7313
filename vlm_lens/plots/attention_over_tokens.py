"""What a patch, or any position, attends to among the tokens, head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from vlm_lens.inputs import TokenMap, load_image
from vlm_lens.inputs.images import ImageSource
from vlm_lens.plots import style
from vlm_lens.plots.layout import MUTED, framed, shown
from vlm_lens.plots.sampling import chosen_heads

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MOST_HEADS, _MOST_TOKENS = 24, 60
_CELL, _ROW, _SIDE = 26, 24, 190
_LEAST_ROOM, _LABELS = 480, 96
_MARGIN = {"l": 76, "r": 100, "t": 8, "b": 14}
_WIDEST, _LONGEST = 900, 16


@dataclass(frozen=True)
class _Column:
    """One token, or all positions of an image in a row.

    Attributes:
        label: Below it, ready for plotly.
        hint: What it is.
        positions: Its positions.
    """

    label: str
    hint: str
    positions: list[int]


def attention_over_tokens(
    attention: Shaped[Tensor, "head pos"] | Shaped[np.ndarray, "head pos"],
    token_map: TokenMap,
    *,
    position: int | None = None,
    received: bool = False,
    image: ImageSource | None = None,
    heads: Sequence[int] | None = None,
    title: str | None = None,
) -> go.Figure:
    """Draws how much each token gets of a position's attention, one row for each head.

    The positions of an image are one column, which shows their sum (or mean, if `received`);
    `attention_over_image` shows each. Padding is left out.

    Args:
        attention: The weights of one query, e.g. ``cache["pattern", 3][0, :, 27]``; or, with
            `received`, of one key: ``cache["pattern", 3][0, :, :, 27]``.
        token_map: What the positions are, e.g. ``inputs.token_map[0]``.
        position: The position whose attention this is.
        received: Whether it is what the position receives from each token, and not what it pays
            to each. Where attention is causal, a patch sees only what comes before it, and is seen
            by all that comes behind.
        image: The original image of that position, which is then shown with its patch outlined.
        heads: Which heads. By default all, and of more than 24 those that attend to text most.
        title: By default, whose attention it is.

    Raises:
        ValueError: There is not one weight for each position, or an image was given for a position
            that shows none of its patches.
        IndexError: There is no such head or position.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.shapes_llava import IMAGES
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> sample = load_samples(IMAGES)[3]
        >>> inputs = model.prepare(images=sample.images, text=sample.text)
        >>> _, cache = model.run_with_cache(inputs)
        >>> to_patch = cache["pattern", 3][0, :, :, 27]
        >>> figure = attention_over_tokens(
        ...     to_patch, inputs.token_map[0], position=27, received=True)
        >>> figure.data[0].z.shape, figure.layout.xaxis.ticktext[1]
        ((5, 10), 'image ×64')
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    weights = style.to_numpy(attention)
    if weights.shape[1] != len(token_map):
        raise ValueError(
            f"expected one weight for each of {len(token_map)} positions, got {weights.shape[1]}"
        )
    columns = _columns(token_map, "mean" if received else "sum")
    pooled = np.mean if received else np.sum
    sums = np.stack([pooled(weights[:, one.positions], axis=1) for one in columns], axis=1)
    text = [i for i, one in enumerate(columns) if len(one.positions) == 1]
    which, note = chosen_heads(np.nan_to_num(sums[:, text].sum(1)), heads, _MOST_HEADS)
    kept = _largest(sums[which].mean(0))
    fewer = f"{len(kept)} of {len(columns)} tokens: those with the most attention."
    names = [f"head {head}" for head in which]
    rows = sums[np.ix_(which, kept)]
    if len(which) > 1:
        names, rows = ["mean", *names], np.concatenate([rows.mean(0, keepdims=True), rows])
    shown_columns = [columns[i] for i in kept]
    where = None if position is None else range(len(token_map))[position]
    layout = _layout(
        title=title or _title(token_map, where, received),
        remarks=[note, fewer * (len(kept) < len(columns))],
        names=names,
        columns=shown_columns,
        with_image=image is not None,
    )
    figure = go.Figure(layout=layout)
    figure.add_trace(_heatmap(rows, names, shown_columns))
    if image is not None:
        _add_image(figure, image, token_map, where)
    return figure


def _columns(token_map: TokenMap, pooled: str) -> list[_Column]:
    """Tokens one by one, and what shows an image together."""
    found: list[_Column] = []
    places = [p for p in range(len(token_map)) if token_map.modality[p] != "padding"]
    for image, run in groupby(places, key=token_map.image_index.__getitem__):
        positions = list(run)
        if image >= 0 and len(positions) > 1:
            name = "image" if len(token_map.layouts) == 1 else f"image {image}"
            span = f"{name}, positions {positions[0]} to {positions[-1]}, {pooled}"
            found.append(_Column(f"{name} ×{len(positions)}", span, positions))
            continue
        for p in positions:
            token = token_map.tokens[p]
            hint = f"position {p} ({token_map.role[p]}): {shown(repr(token))}"
            found.append(_Column(_cut(token), hint, [p]))
    return found


def _cut(token: str) -> str:
    """A token in at most sixteen letters, which plotly shows as they are."""
    text = token.strip() or "␣"
    return shown(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…")


def _largest(mean: Float[np.ndarray, " column"]) -> list[int]:
    order = np.argsort(-np.nan_to_num(mean), kind="stable")[:_MOST_TOKENS]
    return sorted(order.tolist())


def _title(token_map: TokenMap, position: int | None, received: bool) -> str:
    if position is None:
        return "Attention over the tokens, head by head"
    name = f"position {position}, {token_map.tokens[position]!r},"
    if received:
        return f"Attention that {name} receives from the tokens"
    return f"Attention of {name} over the tokens"


def _heatmap(
    rows: Float[np.ndarray, "row column"], names: list[str], columns: list[_Column]
) -> dict[str, Any]:
    low, high = style.value_range(np.nan_to_num(rows), style.colour_limit(rows))
    hints = [[f"{name}<br>{column.hint}" for column in columns] for name in names]
    return {
        "type": "heatmap",
        "z": rows,
        "zmin": low,
        "zmax": high,
        "colorscale": style.colour_stops(low),
        "colorbar": {
            "title": {"text": "attention<br>(share)", "font": {"size": 12, "color": MUTED}},
            "thickness": 12,
            "outlinewidth": 0,
        },
        "customdata": np.array(hints, dtype=object),
        "hovertemplate": "%{customdata}<br>attention <b>%{z:.4g}</b><extra></extra>",
        "xgap": 1,
        "ygap": 1,
    }


def _layout(
    *,
    title: str,
    remarks: list[str],
    names: list[str],
    columns: list[_Column],
    with_image: bool,
) -> dict[str, Any]:
    inner = min(max(_CELL * len(columns), _LEAST_ROOM), _WIDEST)
    left = _SIDE + _MARGIN["l"] if with_image else 0
    height = max(_ROW * len(names), _SIDE)
    width = left + inner
    layout = framed(
        title=title,
        remarks=remarks,
        width=width + _MARGIN["l"] + _MARGIN["r"],
        height=height + _LABELS + _MARGIN["t"] + _MARGIN["b"],
        margin={**_MARGIN, "b": _MARGIN["b"] + _LABELS, "l": 14 if with_image else _MARGIN["l"]},
    )
    if with_image:
        layout["width"] -= _MARGIN["l"] - 14
    axis = {"showgrid": False, "zeroline": False, "tickfont": {"size": 11}}
    layout["xaxis"] = {
        **axis,
        "domain": [left / width, 1],
        "tickvals": list(range(len(columns))),
        "ticktext": [column.label for column in columns],
        "tickangle": 60,
    }
    layout["yaxis"] = {
        **axis,
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "range": [len(names) - 0.5, -0.5],
    }
    layout["plot_bgcolor"] = "#f4f5f6"
    return layout


def _add_image(
    figure: go.Figure, source: ImageSource, token_map: TokenMap, position: int | None
) -> None:
    """The picture on the left, with the patch of the position outlined."""
    if position is None or token_map.cells[position] == (-1, -1):
        raise ValueError(
            "expected the position of a patch together with an image, got "
            + ("none" if position is None else f"position {position}, which shows no patch")
        )
    picture = load_image(source)
    width, height = picture.size
    x0, y0, x1, y1 = token_map.box(position)
    layout: Any = figure.layout
    wide = layout.width - 14 - _MARGIN["r"]
    hidden = {"visible": False, "showgrid": False, "zeroline": False, "constrain": "domain"}
    figure.add_layout_image(
        source=style.data_uri(picture),
        xref="x2",
        yref="y2",
        x=0,
        y=0,
        sizex=width,
        sizey=height,
        sizing="stretch",
        layer="below",
    )
    for colour, thickness in (("white", 6), (style.css(style.POSITIVE, 1.0), 3)):
        line = {"color": colour, "width": thickness}
        box = {"x0": x0, "y0": y0, "x1": x1, "y1": y1}
        figure.add_shape(type="rect", xref="x2", yref="y2", line=line, **box)
    figure.add_scatter(x=[], y=[], xaxis="x2", yaxis="y2", showlegend=False)
    figure.update_layout(
        xaxis2={**hidden, "domain": [0, _SIDE / wide], "range": [0, width], "anchor": "y2"},
        yaxis2={
            **hidden,
            "range": [height, 0],
            "anchor": "x2",
            "scaleanchor": "x2",
            "constraintoward": "top",
        },
    )

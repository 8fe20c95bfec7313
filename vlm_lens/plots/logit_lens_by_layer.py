"""What positions decode to, one row for each depth and one column for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vlm_lens.inputs import TokenMap
from vlm_lens.plots import style
from vlm_lens.plots.decoded import Decoded
from vlm_lens.plots.layout import INK, MUTED, framed, shown
from vlm_lens.plots.sampling import evenly

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CELL, _ROW, _LETTERS, _LONGEST = 58, 26, 8, 14
_MOST_COLUMNS = 18
_MARGIN = {"l": 70, "r": 100, "t": 8, "b": 96}


def logit_lens_by_layer(
    lens: Decoded,
    token_map: TokenMap,
    *,
    positions: Sequence[int] | None = None,
    title: str = "Logit lens: most probable token by depth",
) -> go.Figure:
    """Draws the most probable next token at each depth, in the colour of its probability.

    Args:
        lens: What a lens found, e.g. `vlm_lens.analyses.logit_lens.logit_lens`.
        token_map: What the positions are, e.g. ``inputs.token_map[0]``.
        positions: Which of the lens' positions; by default all, of more than 18 some,
            evenly apart.
        title: The heading.

    Raises:
        ValueError: A position was not decoded.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.analyses.logit_lens import logit_lens
        >>> from vlm_lens.shapes_llava import IMAGES
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> sample = load_samples(IMAGES)[3]
        >>> inputs = model.prepare(images=sample.images, text=sample.text)
        >>> lens = logit_lens(model, inputs, positions="text")
        >>> figure = logit_lens_by_layer(lens, inputs.token_map[0])
        >>> str(figure.data[0].text[-1, -1])  # the last depth, the last position: the answer
        'no'
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    chosen, note = _chosen(lens, positions)
    places = [lens.positions.index(position) for position in chosen]
    shares = style.to_numpy(lens.probabilities[:, places, 0])
    words = [[lens.words(depth, position) for position in chosen] for depth in lens.depths]
    best = lens.probabilities[:, places].tolist()
    hints = [
        [
            _hint(lens.names[i], token_map, position, words[i][j], best[i][j])
            for j, position in enumerate(chosen)
        ]
        for i in range(len(lens.depths))
    ]
    n_rows, n_columns = shares.shape
    layout = framed(
        title=title,
        remarks=["Depth 0 is what enters the first block.", note],
        width=max(_CELL * n_columns, 380) + _MARGIN["l"] + _MARGIN["r"],
        height=_ROW * n_rows + _MARGIN["t"] + _MARGIN["b"],
        margin=_MARGIN,
    )
    axis = {"showgrid": False, "zeroline": False, "tickfont": {"size": 11}}
    layout["xaxis"] = {
        **axis,
        "tickvals": list(range(n_columns)),
        "ticktext": [f"{_cut(token_map.tokens[p])} ({p})" for p in chosen],
        "tickangle": 45,
        "title": {"text": "token (position)", "font": {"size": 13}},
    }
    layout["yaxis"] = {
        **axis,
        "tickvals": list(range(n_rows)),
        "ticktext": [str(depth) for depth in lens.depths],
        "title": {"text": "depth (blocks passed)", "font": {"size": 13}},
    }
    figure = go.Figure(layout=layout)
    figure.add_heatmap(
        z=shares,
        zmin=0,
        zmax=1,
        colorscale=style.colour_stops(0.0),
        text=np.array([[shown(cell[0].strip()[:_LETTERS]) for cell in row] for row in words]),
        texttemplate="%{text}",
        textfont={"size": 11, "color": INK},
        customdata=np.array(hints),
        hovertemplate="%{customdata}<extra></extra>",
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": "probability", "font": {"size": 12, "color": MUTED}},
            "thickness": 12,
            "outlinewidth": 0,
        },
    )
    return figure


def _chosen(lens: Decoded, positions: Sequence[int] | None) -> tuple[list[int], str]:
    """The positions to draw, and a note where these are not all."""
    if positions is not None:
        wrong = [position for position in positions if position not in lens.positions]
        if wrong:
            raise ValueError(f"position {wrong[0]} was not decoded: {list(lens.positions)} were")
        return list(positions), ""
    kept = [lens.positions[i] for i in evenly(len(lens.positions), _MOST_COLUMNS)]
    if len(kept) == len(lens.positions):
        return kept, ""
    return kept, f"{len(kept)} of {len(lens.positions)} positions; positions=[...] shows others."


def _cut(token: str) -> str:
    """A token in a few letters, which plotly shows as they are."""
    return shown(token.strip()[:_LONGEST]) or "␣"


def _hint(
    name: str, token_map: TokenMap, position: int, words: list[str], shares: list[float]
) -> str:
    token = shown(repr(token_map.tokens[position]))
    lines = [f"{shown(repr(w))} {share:.3f}" for w, share in zip(words, shares, strict=True)]
    return "<br>".join([f"<b>{name}</b>", f"behind position {position}, {token}:", *lines])

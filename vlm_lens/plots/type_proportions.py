"""Which share of each layer's neurons is visual, text, multi-modal or unknown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vlm_lens.plots.layout import GRID, INK, MUTED, framed, shown

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLOURS = {
    "visual": (213, 94, 0),
    "text": (0, 114, 178),
    "multi-modal": (0, 158, 115),
    "unknown": (150, 150, 150),
}
"""Of the labels, from below to above; after Okabe and Ito, for colour-blind readers too."""

_FAINT = 0.38
_BAR, _NARROWEST, _WIDEST = 46, 500, 1100
_HEIGHT = 300
_MARGIN = {"l": 70, "r": 190, "t": 16, "b": 60}
_ROOM_FOR_SHARE = 0.06
_AXIS = {"zeroline": False, "showline": True, "linecolor": MUTED, "ticks": "outside"}


def type_proportions(frame: pd.DataFrame, *, title: str, remarks: Sequence[str] = ()) -> go.Figure:
    """Draws a stacked bar for each layer (Fig. 5 of "Deciphering Functions of Neurons in VLMs").

    What is full in colour is more than chance: the label's share among the neuron's top samples is
    larger than if it were drawn which tokens are visual. What is faint is not.

    Args:
        frame: A row for each hook point: its ``name``, ``layer`` and number of ``neurons``, the
            share of each label, and that which is more than chance (``significant visual``, ...).
        title: The heading.
        remarks: Lines below it.

    Example:
        >>> import pandas as pd
        >>> labels = ("visual", "text", "multi-modal", "unknown")
        >>> shares = dict.fromkeys([*labels, *(f"significant {label}" for label in labels)], 0.0)
        >>> row = {"name": "blocks.0.mlp.hook_act", "layer": 0, "neurons": 2, **shares}
        >>> row |= {"visual": 0.5, "significant visual": 0.5, "multi-modal": 0.5}
        >>> figure = type_proportions(pd.DataFrame([row]), title="demo")
        >>> [bar.name for bar in figure.data if sum(bar.y)]
        ['visual, more than chance', 'multi-modal']
    """
    import plotly.graph_objects as go  # a fifth of a second that reports do not need

    names = _names(frame)
    figure = go.Figure(layout=_layout(names, title, remarks))
    for label in COLOURS:
        every, sure = (frame[column].to_numpy() for column in (label, f"significant {label}"))
        figure.add_trace(_bar(frame, names, label, sure, is_sure=True))
        figure.add_trace(_bar(frame, names, label, every - sure, is_sure=False))
    return figure


def _names(frame: pd.DataFrame) -> list[str]:
    """What stands below each bar: the layer, or the hook point where that is not enough."""
    layers = frame["layer"].tolist()
    if len({*layers}) < len(layers) or any(pd.isna(layer) for layer in layers):
        return [shown(str(name)) for name in frame["name"]]
    return [str(layer) for layer in layers]


def _bar(
    frame: pd.DataFrame, names: list[str], label: str, shares: np.ndarray, *, is_sure: bool
) -> dict[str, Any]:
    """One label's part of all bars."""
    red, green, blue = COLOURS[label]
    colour = f"rgba({red},{green},{blue},{1 if is_sure else _FAINT})"
    how = "more than chance" if is_sure else "not more than chance"
    large = [f"{share:.0%}" if share >= _ROOM_FOR_SHARE else "" for share in shares]
    sizes = frame["neurons"].to_numpy()
    counts = (shares * sizes).round().astype(int)
    return {
        "type": "bar",
        "name": f"{label}, more than chance" if is_sure else label,
        "x": names,
        "y": shares.tolist(),
        "marker": {"color": colour, "line": {"width": 0}},
        "text": large,
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"size": 11, "color": "white" if is_sure and label == "text" else INK},
        "customdata": [
            f"<b>{shown(str(name))}</b><br>{label}, {how}<br>{count:,} of {n:,} neurons"
            for name, count, n in zip(frame["name"], counts, sizes, strict=True)
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "legendgroup": label,
    }


def _layout(names: list[str], title: str, remarks: Sequence[str]) -> dict[str, Any]:
    layout = framed(
        title=title,
        remarks=remarks,
        width=min(max(_BAR * len(names), _NARROWEST), _WIDEST) + _MARGIN["l"] + _MARGIN["r"],
        height=_HEIGHT + _MARGIN["t"] + _MARGIN["b"],
        margin=_MARGIN,
    )
    are_layers = all(name.isdigit() for name in names)
    return {
        **layout,
        "barmode": "stack",
        "bargap": 0.12,
        "xaxis": {
            **_AXIS,
            "type": "category",
            "title": {"text": "layer" if are_layers else "", "standoff": 6},
            "tickangle": 0 if are_layers else 60,
            "automargin": True,
        },
        "yaxis": {
            **_AXIS,
            "title": {"text": "share of neurons", "standoff": 8},
            "range": [0, 1],
            "tickformat": ".0%",
            "gridcolor": GRID,
        },
        "legend": {
            "x": 1.02,
            "y": 1,
            "yanchor": "top",
            "font": {"size": 12},
            "tracegroupgap": 6,
        },
    }

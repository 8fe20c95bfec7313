"""How active the neurons of each layer are, for each type of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from vlm_lens.plots.lines import Line, Panel, lines
from vlm_lens.statistics.neuron_statistics import NeuronStatistics

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MEASURES = {
    "active_rate": "share of positions where active, mean over neurons (dotted: 99th percentile)",
    "mean": "mean activation, mean over neurons (dotted: 99th percentile)",
    "max": "largest activation, mean over neurons (dotted: 99th percentile)",
}
_TAIL = 0.99


def statistics_by_layer(
    statistics: NeuronStatistics, *, component: str | None = None, title: str | None = None
) -> go.Figure:
    """Draws what `collect` found over the layers: of most neurons, and of the most active ones.

    Args:
        statistics: Of `vlm_lens.statistics.collect`.
        component: Which part of the model; by default the first one with layers.
        title: By default, which part and how many samples.

    Raises:
        ValueError: The component has no hook point in any layer.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.statistics import collect
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=4)
        >>> figure = statistics_by_layer(collect(model, samples, component="language_model"))
        >>> [line.name for line in figure.data[:3]]
        ['image', 'text', 'special']
    """
    frame = statistics.to_dataframe().dropna(subset=["layer"])
    present = list(dict.fromkeys(frame["component"]))
    chosen = component or next(iter(present), "")
    if chosen not in present:
        raise ValueError(f"expected a component with layers, one of {present}, got {component!r}")
    frame = frame.query("component == @chosen")
    panels = [
        Panel(says, _lines(frame, measure, None), _lines(frame, measure, _TAIL))
        for measure, says in _MEASURES.items()
    ]
    sites = ", ".join(dict.fromkeys(frame["site"]))
    return lines(
        panels,
        title=title or f"Activity of the {chosen.replace('_', ' ')}'s neurons by layer",
        remarks=[f"{statistics.n_samples:,} samples; {sites}"],
    )


def _lines(frame: pd.DataFrame, measure: str, quantile: float | None) -> dict[str, Line]:
    """By token type: the layers, and the mean over their neurons, or a quantile."""
    lines = {}
    for token_type in dict.fromkeys(frame["token_type"]):
        by_layer = frame.query("token_type == @token_type").groupby("layer")[measure]
        values: Any = by_layer.mean() if quantile is None else by_layer.quantile(quantile)
        lines[str(token_type)] = [int(layer) for layer in values.index], values.tolist()
    return lines

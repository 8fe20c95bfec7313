"""Draws one_neuron.png out of what ``make findings-real`` has measured.

Left, the residual stream's largest entries by block: the massive activation at the first token.
Right, perplexity with the neuron that writes it set to something else, at some positions or all.

Needs kaleido and a Chromium: ``python assets/one_neuron.py``.
"""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.findings_one_neuron import stored_tables
from benchmarks.findings_real import STORED
from vlm_lens.plots import save, style

LINES = {
    "at the first token": "#d1495b",
    "largest elsewhere": "#30638e",
    "median": "#8a8a8a",
}


def figure() -> go.Figure:
    """Both panels."""
    found = stored_tables(STORED)
    titles = ("Largest entries of the residual stream", "Perplexity, times as high")
    fig = make_subplots(
        1, 2, subplot_titles=titles, column_widths=[0.5, 0.5], horizontal_spacing=0.3
    )
    layers = found["by layer"]
    for name, color in LINES.items():
        fig.add_scatter(
            x=[row["block"] for row in layers],
            y=[row[name] for row in layers],
            name=name,
            line={"color": color},
            row=1,
            col=1,
        )
    rows = found["places"][1:][::-1]
    fig.add_bar(
        x=[10 ** row["log10 of the ratio"] for row in rows],
        y=[row["the neuron"] for row in rows],
        orientation="h",
        marker={"color": "#d1495b"},
        showlegend=False,
        row=1,
        col=2,
    )
    fig.update_yaxes(type="log", dtick=1, row=1, col=1)
    fig.update_xaxes(title="after block", row=1, col=1)
    fig.update_xaxes(type="log", dtick=1, row=1, col=2)
    fig.update_layout(
        template="plotly_white",
        font={"family": style.FONT, "size": 12},
        width=1080,
        height=380,
        margin={"l": 50, "r": 20, "t": 40, "b": 80},
        legend={"orientation": "h", "y": -0.22},
    )
    return fig


if __name__ == "__main__":
    save(figure(), Path(__file__).with_suffix(".png"))

"""Draws two pictures out of what ``make findings-real`` and ``make findings-vlm`` have measured.

one_neuron.png is of the language model alone, one_neuron_vlm.png of the VLM that it is part of.

Left, the residual stream's largest entries by block: the massive activation at the first token.
Right, perplexity with the neuron that writes it set to something else, at some positions or all.

Needs kaleido and a Chromium: ``python assets/one_neuron.py``.
"""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks import findings_real, findings_vlm
from benchmarks.findings_one_neuron import stored_tables
from vlm_lens.plots import save, style

LINES = {
    "at the first token": "#d1495b",
    "largest elsewhere": "#30638e",
    "median": "#8a8a8a",
}


CURVES = {"CAN": "#d1495b", "activation only": "#edae49", "gradient only": "#30638e"}


def figure() -> go.Figure:
    """Both panels."""
    found = stored_tables(findings_real.STORED)
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
    return _styled(fig)


def figure_of_vlm() -> go.Figure:
    """Collapse curves of the VLM, and its right answers."""
    found = stored_tables(findings_vlm.STORED)
    titles = ("Perplexity, times as high, without the best k", "Right answers of 20")
    fig = make_subplots(1, 2, subplot_titles=titles, horizontal_spacing=0.1)
    searches = list(dict.fromkeys(row["search"] for row in found["curves"]))
    for search in searches:
        points = [row for row in found["curves"] if row["search"] == search and row["k"]]
        points.sort(key=lambda row: row["k"])
        fig.add_scatter(
            x=[row["k"] for row in points],
            y=[row["perplexity ratio"] for row in points],
            name=search,
            mode="lines+markers",
            line={"color": CURVES.get(search, "#b8b8b8")},
            row=1,
            col=1,
        )
    rows = [row for row in found["answers"] if not row["set to zero"].endswith(("1", "2"))]
    for row, color in zip(rows, ("#30638e", "#d1495b", "#b8b8b8", "#dddddd"), strict=True):
        kinds = [name for name in row if name != "set to zero"]
        name = row["set to zero"].removesuffix(", seed 0")
        fig.add_bar(
            x=kinds,
            y=[row[kind] for kind in kinds],
            name=f"{name} at zero",
            marker={"color": color},
            row=1,
            col=2,
        )
    fig.update_xaxes(type="log", dtick=1, title="k", row=1, col=1)
    fig.update_yaxes(type="log", dtick=1, row=1, col=1)
    return _styled(fig)


def _styled(fig: go.Figure) -> go.Figure:
    return fig.update_layout(
        template="plotly_white",
        font={"family": style.FONT, "size": 12},
        width=1080,
        height=380,
        margin={"l": 50, "r": 20, "t": 40, "b": 80},
        legend={"orientation": "h", "y": -0.22},
    )


if __name__ == "__main__":
    save(figure(), Path(__file__).with_suffix(".png"))
    save(figure_of_vlm(), Path(__file__).with_name("one_neuron_vlm.png"))

"""How near the modalities' hidden states come to each other, over the depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lens.plots.line_panels import Panel, line_panels

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.analyses.miner_convergence import Convergence

_TITLES = {
    "knn_mixing": "neighbours of the other modality (1 = evenly mixed)",
    "cka": "linear CKA (dotted: samples shuffled)",
    "cosine": "cosine",
}


def modality_convergence(found: Convergence) -> go.Figure:
    """Draws one panel for each measure: lines over the depth, one for each pair of modalities.

    Args:
        found: Of `vlm_lens.analyses.miner_convergence.convergence`.

    Example:
        >>> import pandas as pd
        >>> from vlm_lens.analyses.miner_convergence import Convergence
        >>> row = {"depth": 0, "name": "blocks.0.hook_resid_pre", "a": "text", "b": "image",
        ...        "knn_mixing": 0.1, "cka": 0.4, "cka_shuffled": 0.2, "cosine": 0.3}
        >>> figure = modality_convergence(Convergence(pd.DataFrame([row])))
        >>> [line.y for line in figure.data]
        [(0.1,), (0.4,), (0.2,), (0.3,)]
    """
    from vlm_lens.analyses.miner_results import lines_of  # whose results draw themselves with this

    rows = found.frame.to_dict("records")
    lines = {name: lines_of(rows, "depth", name, by=["a", "b"]) for name in _TITLES}
    dotted = {"cka": lines_of(rows, "depth", "cka_shuffled", by=["a", "b"])}
    panels = [Panel(title, lines[m], dotted.get(m, {}), 1) for m, title in _TITLES.items()]
    return line_panels(
        panels, title=found.TITLE, x_title="depth (0 = input)", remarks=list(found.notes)
    )

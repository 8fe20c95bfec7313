"""How much of the last token's attention each modality gets, over the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lens.plots.line_panels import Panel, line_panels

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.analyses.miner_attention import LastTokenAttention

_CLEAN = "none"


def attention_by_layer(found: LastTokenAttention) -> go.Figure:
    """Draws one panel for each modality: its share of the attention, for each set that is masked.

    Args:
        found: Of `vlm_lens.analyses.miner_attention.last_token_attention`.

    Example:
        >>> import pandas as pd
        >>> from vlm_lens.analyses.miner_attention import LastTokenAttention
        >>> row = {"layer": 0, "name": "blocks.0.attn.hook_pattern", "modality": "image",
        ...        "masked": "none", "mass": 0.25, "uniform": 0.5, "n_samples": 4}
        >>> figure = attention_by_layer(LastTokenAttention(pd.DataFrame([row])))
        >>> [line.y for line in figure.data]
        [(0.25,), (0.5,)]
    """
    from vlm_lens.analyses.miner_results import lines_of  # whose results draw themselves with this

    panels = []
    for modality in dict.fromkeys(found.frame["modality"]):
        rows = [row for row in found.frame.to_dict("records") if row["modality"] == modality]
        clean = [row for row in rows if row["masked"] == _CLEAN]
        panels.append(
            Panel(
                f"attention to {modality} (dotted: if it were even)",
                lines_of(rows, "layer", "mass", by=["masked"]),
                lines_of(clean, "layer", "uniform", by=["masked"]),
            )
        )
    return line_panels(panels, title=found.TITLE, remarks=list(found.notes))

"""How well tasks are done as growing shares of neurons are masked."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

from vlm_lens.plots.line_panels import Line, Panel, line_panels

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.analyses.miner_curve import MaskingCurve


def masking_curves(found: MaskingCurve) -> go.Figure:
    """Draws one panel for each task: performance over the share of masked neurons.

    Dotted lines of the same colour are random neurons of the same layers, on the mean over seeds.

    Raises:
        ValueError: Nothing was masked.

    Example:
        >>> import pandas as pd
        >>> from vlm_lens.analyses.miner_curve import MaskingCurve
        >>> columns = ["task", "ratio", "masked", "control", "performance"]
        >>> rows = [("vqa", 0.0, "none", False, 1.0), ("vqa", 0.02, "text", False, 0.5)]
        >>> figure = masking_curves(MaskingCurve(pd.DataFrame(rows, columns=columns)))
        >>> [trace.name for trace in figure.data]
        ['clean', 'text']
    """
    every = found.frame.to_dict("records")
    panels = []
    for task in dict.fromkeys(row["task"] for row in every):
        rows = [row for row in every if row["task"] == task]
        ratios = [row["ratio"] for row in rows if row["ratio"] > 0]
        if not ratios:
            raise ValueError("expected measurements with neurons masked, got none")
        clean = next(row["performance"] for row in rows if row["ratio"] == 0)
        lines = {"clean": ([min(ratios), max(ratios)], [clean, clean])}
        lines |= _lines([row for row in rows if row["ratio"] > 0 and not row["control"]])
        controls = _lines([row for row in rows if row["control"]])
        panels.append(Panel(str(task), lines, controls, reach=1))
    return line_panels(
        panels,
        title=found.title,
        x_title="share of all neurons that is selected",
        log_x=True,
        remarks=["Dotted: as many random neurons of the same layers.", *found.notes],
    )


def _lines(rows: list[dict[Any, Any]]) -> dict[str, Line]:
    """By what is masked: the mean performance, over seeds where there are several, by ratio."""
    grouped: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        by_ratio = grouped.setdefault(str(row["masked"]), {})
        by_ratio.setdefault(row["ratio"], []).append(row["performance"])
    return {
        name: (list(by_ratio), [fmean(values) for values in by_ratio.values()])
        for name, by_ratio in grouped.items()
    }

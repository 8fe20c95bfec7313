"""What each task loses without each modality's neurons, beside random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_lens.plots.labelled_heatmap import Cells, labelled_heatmap
from vlm_lens.plots.layout import shown

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.analyses.miner_specificity import Specificity


def specificity_matrix(found: Specificity) -> go.Figure:
    """Draws by how many points each task falls when a set of neurons is masked.

    Each cell also says how far random neurons of the same layers let it fall (mean, and range over
    seeds). It is bold where the set does more harm than every one of them.

    Example:
        >>> import pandas as pd
        >>> from vlm_lens.analyses.miner_specificity import Specificity
        >>> row = {"masked": "image", "task": "vqa", "n_neurons": 3, "clean": 1.0,
        ...        "performance": 0.5, "drop": 0.5, "standard_error": 0.1, "control": 0.0,
        ...        "control_low": 0.0, "control_high": 0.0, "excess": 0.5, "n_samples": 8}
        >>> specificity_matrix(Specificity(pd.DataFrame([row]))).data[0].text[0, 0]
        '<b>−50.0</b><br>random 0.0'
    """
    rows, columns = (list(dict.fromkeys(found.frame[name])) for name in ("masked", "task"))
    drops = np.full((len(rows), len(columns)), np.nan)
    texts = [["" for _ in columns] for _ in rows]
    hints = [["" for _ in columns] for _ in rows]
    sizes = {}
    for cell in found.frame.to_dict("records"):
        i, j = rows.index(cell["masked"]), columns.index(cell["task"])
        drops[i, j] = 100 * cell["drop"]
        texts[i][j], hints[i][j] = _text(cell), _hint(cell)
        sizes[cell["masked"]] = f"{cell['masked']} ({cell['n_neurons']:,})"
    return labelled_heatmap(
        Cells([sizes[name] for name in rows], columns, drops, texts, hints),
        title=found.TITLE,
        row_title="masked neurons",
        column_title="task",
        colour_title="points lost",
        remarks=[
            "Change of the mean grade in points; below it, that with as many random neurons of the "
            "same layers (mean, range over seeds). Bold: beyond all of these.",
            *found.notes,
        ],
    )


def _text(cell: dict[Any, Any]) -> str:
    change, low, high = (_points(-cell[n]) for n in ("drop", "control_high", "control_low"))
    beyond = cell["drop"] > max(cell["control_high"], 0)
    spread = "" if low == high else f" [{low}, {high}]"
    first = f"<b>{change}</b>" if beyond else change
    return f"{first}<br>random {_points(-cell['control'])}{spread}"


def _hint(cell: dict[Any, Any]) -> str:
    return "<br>".join(
        [
            f"<b>{shown(cell['masked'])} masked, {shown(cell['task'])}</b>",
            f"{100 * cell['clean']:.1f} → {100 * cell['performance']:.1f}",
            f"{_points(-cell['drop'])} ± {100 * cell['standard_error']:.1f} (standard error)",
            f"beyond random: {_points(-cell['excess'])}",
            f"{cell['n_neurons']:,} neurons, {cell['n_samples']:,} samples",
        ]
    )


def _points(share: float) -> str:
    """A change in points, with a true minus sign."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text

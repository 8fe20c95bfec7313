"""How many neurons the sets of several modalities share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlm_lens.plots.labelled_heatmap import Cells, labelled_heatmap
from vlm_lens.plots.layout import shown

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.analyses.miner_sets import Overlap


def set_overlap(found: Overlap) -> go.Figure:
    """Draws the Jaccard index of each pair of sets, with what chance would give.

    Example:
        >>> from vlm_lens.analyses.miner_sets import overlap
        >>> from vlm_lens.neurons import NeuronSet
        >>> name = "blocks.0.mlp.hook_act"
        >>> sets = {k: NeuronSet.from_indices({name: i}) for k, i in (("a", [0, 1]), ("b", [1]))}
        >>> set_overlap(overlap(sets, sizes={name: 8})).data[0].text[0, 1]
        '<b>0.50</b>  1 shared<br>by chance 0.09'
    """
    names = list(dict.fromkeys([*found.frame["a"], *found.frame["b"]]))
    values = np.full((len(names), len(names)), np.nan)
    texts = [["" for _ in names] for _ in names]
    hints = [["" for _ in names] for _ in names]
    sizes: dict[str, int] = {}
    for pair in found.frame.to_dict("records"):
        a, b = str(pair["a"]), str(pair["b"])
        sizes |= {a: pair["n_a"], b: pair["n_b"]}
        text = f"<b>{pair['jaccard']:.2f}</b>  {pair['shared']:,} shared"
        hint = [
            f"<b>{shown(a)} and {shown(b)}</b>",
            f"{pair['shared']:,} shared of {pair['n_a']:,} and {pair['n_b']:,}",
            f"by chance {pair['expected_shared']:.3g} (in the same layers "
            f"{pair['expected_in_layers']:.3g})",
            f"p = {pair['p_value']:.2g}",
        ]
        for i, j in ((names.index(a), names.index(b)), (names.index(b), names.index(a))):
            values[i, j] = pair["jaccard"]
            texts[i][j] = f"{text}<br>by chance {pair['expected_jaccard']:.2f}"
            hints[i][j] = "<br>".join(hint)
    labels = [f"{name} ({sizes[name]:,})" for name in names]
    return labelled_heatmap(
        Cells(labels, labels, values, texts, hints),
        title=found.TITLE,
        row_title="",
        column_title="",
        colour_title="Jaccard index",
        remarks=["Shared neurons of all that are in either set.", *found.notes],
    )

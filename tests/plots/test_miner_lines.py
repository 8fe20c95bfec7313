"""The lines of MINER's figures are the numbers of its tables."""

from __future__ import annotations

import pandas as pd

from vlm_lens.analyses.miner_attention import LastTokenAttention
from vlm_lens.analyses.miner_convergence import Convergence
from vlm_lens.plots import attention_by_layer, modality_convergence


def convergence_table() -> Convergence:
    pairs = [("text", "image"), ("text", "special")]
    rows = [
        {"depth": depth, "name": f"blocks.{depth}", "a": a, "b": b, "n_samples": 5}
        | {"knn_mixing": 0.1 * depth + i, "cka": 0.2 * depth, "cka_shuffled": 0.05, "cosine": -0.5}
        for depth in range(3)
        for i, (a, b) in enumerate(pairs)
    ]
    return Convergence(pd.DataFrame(rows), {}, ("<b> left out",))


def test_convergence_has_a_panel_for_each_measure():
    found = convergence_table()
    figure = modality_convergence(found)
    lines = {(line.yaxis, line.name, line.line.dash): line for line in figure.data}
    assert lines["y", "text and special", "solid"].y == (1, 1.1, 1.2)
    assert lines["y2", "text and image", "solid"].y == (0, 0.2, 0.4)
    assert lines["y2", "text and image", "dot"].y == (0.05,) * 3
    assert lines["y3", "text and image", "solid"].y == (-0.5,) * 3
    assert len(lines) == 8
    assert "&lt;b&gt; left out" in figure.layout.title.text
    assert found.plot().to_dict() == figure.to_dict()


def test_attention_has_a_panel_for_each_modality():
    rows = [
        {"layer": layer, "name": f"blocks.{layer}.attn.hook_pattern", "modality": modality}
        | {"masked": masked, "mass": 0.1 * layer + shift, "uniform": 0.25, "n_samples": 4}
        for layer in range(2)
        for modality in ("text", "image")
        for masked, shift in (("none", 0.0), ("image", 0.5))
    ]
    found = LastTokenAttention(pd.DataFrame(rows))
    figure = attention_by_layer(found)
    lines = {(line.yaxis, line.name, line.line.dash): line.y for line in figure.data}
    assert lines["y", "none", "solid"] == (0, 0.1)
    assert lines["y2", "image", "solid"] == (0.5, 0.6)
    assert lines["y2", "none", "dot"] == (0.25, 0.25)
    assert len(lines) == 6  # what is even does not depend on what is masked
    assert found.plot().to_dict() == figure.to_dict()

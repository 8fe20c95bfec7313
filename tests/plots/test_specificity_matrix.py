"""The heat maps of MINER: every cell says what was measured."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vlm_lens.analyses.miner_sets import overlap
from vlm_lens.analyses.miner_specificity import Specificity
from vlm_lens.neurons import NeuronSet
from vlm_lens.plots.labelled_heatmap import Cells, labelled_heatmap
from vlm_lens.plots.set_overlap import set_overlap
from vlm_lens.plots.specificity_matrix import specificity_matrix


def row(masked: str, task: str, drop: float, controls: tuple[float, float, float]) -> dict:
    mean, low, high = controls
    return {
        "masked": masked,
        "task": task,
        "n_neurons": 1500,
        "clean": 0.9,
        "performance": 0.9 - drop,
        "drop": drop,
        "standard_error": 0.02,
        "control": mean,
        "control_low": low,
        "control_high": high,
        "excess": drop - mean,
        "n_samples": 40,
    }


def result(**changes) -> Specificity:
    rows = [
        row("image", "vqa", 0.5, (0.02, 0.0, 0.05)),
        row("image", "mmlu", -0.03, (0.0, 0.0, 0.0)),
        row("<text>", "vqa", 0.04, (0.02, 0.0, 0.05)),
        row("<text>", "mmlu", 0.0, (0.0, 0.0, 0.0)),
    ]
    return Specificity(pd.DataFrame(rows), **changes)


def test_cells_say_what_is_lost_and_what_random_neurons_lose():
    [heatmap] = specificity_matrix(result()).data
    np.testing.assert_allclose(heatmap.z, [[50, -3], [4, 0]])
    assert heatmap.text.tolist() == [
        ["<b>−50.0</b><br>random −2.0 [−5.0, 0.0]", "+3.0<br>random 0.0"],
        ["−4.0<br>random −2.0 [−5.0, 0.0]", "0.0<br>random 0.0"],
    ]
    assert heatmap.customdata[0, 0].split("<br>") == [
        "<b>image masked, vqa</b>",
        "90.0 → 40.0",
        "−50.0 ± 2.0 (standard error)",
        "beyond random: −48.0",
        "1,500 neurons, 40 samples",
    ]


def test_names_show_as_text():
    figure = specificity_matrix(result(notes=("3 <b> left out",)))
    assert list(figure.layout.yaxis.ticktext) == ["image (1,500)", "&lt;text&gt;<br>(1,500)"] or (
        figure.layout.yaxis.ticktext[1].startswith("&lt;text&gt;")
    )
    assert list(figure.layout.xaxis.ticktext) == ["vqa", "mmlu"]
    assert "3 &lt;b&gt; left out" in figure.layout.title.text
    assert "<text>" not in str(figure.data[0].customdata.tolist())


def test_zero_is_white_and_signs_have_their_colours():
    [heatmap] = specificity_matrix(result()).data
    assert (heatmap.zmin, heatmap.zmax) == (-50, 50)
    assert heatmap.colorscale[1] == (0.5, "rgb(255,255,255)")
    positive = Cells(["a"], ["b"], np.array([[1.0]]), [["x"]], [["x"]])
    [only] = labelled_heatmap(
        positive, title="t", row_title="", column_title="", colour_title="c"
    ).data
    assert (only.zmin, only.zmax) == (0, 1)


def test_figures_grow_with_the_table():
    small = specificity_matrix(result())
    frame = pd.concat([result().frame.assign(task=f"task {i}") for i in range(6)])
    frame = frame.drop_duplicates(["masked", "task"])
    assert specificity_matrix(Specificity(frame)).layout.width > small.layout.width


def test_overlap_is_symmetric_and_the_diagonal_empty():
    name = "blocks.0.mlp.hook_act"
    sets = {
        "text": NeuronSet.from_indices({name: [0, 1]}),
        "image": NeuronSet.from_indices({name: [1, 2, 3]}),
    }
    [heatmap] = set_overlap(overlap(sets, sizes={name: 8})).data
    assert np.isnan(heatmap.z.diagonal()).all()
    assert heatmap.z[0, 1] == heatmap.z[1, 0] == 0.25
    assert heatmap.text.tolist() == [
        ["", "<b>0.25</b>  1 shared<br>by chance 0.18"],
        ["<b>0.25</b>  1 shared<br>by chance 0.18", ""],
    ]
    assert "p = 0.64" in heatmap.customdata[0, 1]

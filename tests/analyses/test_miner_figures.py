"""The figures of MINER show the numbers of its tables, and say what was measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.tiny import Tiny, picture
from vlm_lens import Sample
from vlm_lens.analyses import miner
from vlm_lens.analyses.miner_attention import LastTokenAttention
from vlm_lens.analyses.miner_convergence import Convergence, convergence
from vlm_lens.analyses.miner_curve import MaskingCurve
from vlm_lens.analyses.miner_phenomena import phenomena
from vlm_lens.experiments import Matrix
from vlm_lens.experiments.sets import by_layer, overlap
from vlm_lens.neurons import NeuronSet

ASKED = [Sample(images=[picture(i)], text="what color ?") for i in range(6)]


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


def result(**changes) -> Matrix:
    rows = [
        row("image", "vqa", 0.5, (0.02, 0.0, 0.05)),
        row("image", "mmlu", -0.03, (0.0, 0.0, 0.0)),
        row("<text>", "vqa", 0.04, (0.02, 0.0, 0.05)),
        row("<text>", "mmlu", 0.0, (0.0, 0.0, 0.0)),
    ]
    return Matrix(pd.DataFrame(rows), **changes)


def test_cells_say_what_is_lost_and_what_random_neurons_lose():
    [heatmap] = result().plot().data
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
    figure = result(notes=("3 <b> left out",)).plot()
    assert list(figure.layout.yaxis.ticktext) == ["image (1,500)", "&lt;text&gt;<br>(1,500)"] or (
        figure.layout.yaxis.ticktext[1].startswith("&lt;text&gt;")
    )
    assert list(figure.layout.xaxis.ticktext) == ["vqa", "mmlu"]
    assert "3 &lt;b&gt; left out" in figure.layout.title.text
    assert "<text>" not in str(figure.data[0].customdata.tolist())


def test_zero_is_white_and_signs_have_their_colours():
    [heatmap] = result().plot().data
    assert (heatmap.zmin, heatmap.zmax) == (-50, 50)
    assert heatmap.colorscale[1] == (0.5, "rgb(255,255,255)")


def test_figures_grow_with_the_table():
    small = result().plot()
    frame = pd.concat([result().frame.assign(task=f"task {i}") for i in range(6)])
    frame = frame.drop_duplicates(["masked", "task"])
    assert Matrix(frame).plot().layout.width > small.layout.width


def test_overlap_is_symmetric_and_the_diagonal_empty():
    name = "blocks.0.mlp.hook_act"
    sets = {
        "text": NeuronSet.from_indices({name: [0, 1]}),
        "image": NeuronSet.from_indices({name: [1, 2, 3]}),
    }
    [heatmap] = overlap(sets, sizes={name: 8}).plot().data
    assert np.isnan(heatmap.z.diagonal()).all()
    assert heatmap.z[0, 1] == heatmap.z[1, 0] == 0.25
    assert heatmap.text.tolist() == [
        ["", "<b>0.25</b>  1 shared<br>by chance 0.18"],
        ["<b>0.25</b>  1 shared<br>by chance 0.18", ""],
    ]
    assert "p = 0.64" in heatmap.customdata[0, 1]


def test_importance_is_drawn_with_what_is_selected(llava: Tiny):
    scores = miner.score(llava.model, ASKED[:2])
    selected = miner.select(scores, ratio=0.1)
    figure = scores.plot(selected=selected, weights={"max": 1})
    assert [t.name for t in figure.data] == ["text", "special", "image"] * 3
    expected = scores.by_layer({"max": 1})
    assert list(figure.data[0].y) == expected[expected.modality == "text"]["mean"].tolist()
    counts = by_layer(selected, sizes=scores.sizes).frame
    assert list(figure.data[8].y) == counts[counts.set == "image"]["n_neurons"].tolist()
    assert "2 samples" in figure.layout.title.text


def test_curves_show_clean_masked_and_random():
    columns = ["task", "ratio", "masked", "control", "seed", "performance"]
    rows = [("vqa", 0.0, "none", False, -1, 0.9)]
    for ratio, own, random in ((0.01, 0.8, 0.9), (0.1, 0.2, 0.7)):
        rows += [
            ("vqa", ratio, "image", False, -1, own),
            ("vqa", ratio, "image", True, 0, random),
            ("vqa", ratio, "image", True, 1, random - 0.2),
        ]
    figure = MaskingCurve(pd.DataFrame(rows, columns=columns)).plot()
    clean, own, random = figure.data
    assert (clean.x, clean.y) == ((0.01, 0.1), (0.9, 0.9))
    assert own.y == (0.8, 0.2)
    assert random.y == pytest.approx((0.8, 0.6))
    assert random.line.dash == "dot"
    assert figure.layout.xaxis.type == "log"
    assert set(figure.layout.xaxis.ticktext) == {"1%", "2%", "5%", "10%"}
    nothing = pd.DataFrame(rows[:1], columns=columns)
    with pytest.raises(ValueError, match="neurons masked, got none"):
        MaskingCurve(nothing).plot()


def test_results_draw_themselves(llava: Tiny):
    found = convergence(llava.model, ASKED, k=2)
    figure = found.plot()
    assert len(figure.layout.annotations) == 3
    dotted = [t for t in figure.data if t.line.dash == "dot"]
    assert len(dotted) == 3
    assert list(dotted[0].y) == found.frame["cka_shuffled"].tolist()[:4] or len(dotted[0].y) == 4
    drawn = phenomena(llava.model, ASKED).plot()
    assert {t.name for t in drawn.data} == {"special", "image"}


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
    figure = found.plot()
    lines = {(line.yaxis, line.name, line.line.dash): line for line in figure.data}
    assert lines["y", "text and special", "solid"].y == (1, 1.1, 1.2)
    assert lines["y2", "text and image", "solid"].y == (0, 0.2, 0.4)
    assert lines["y2", "text and image", "dot"].y == (0.05,) * 3
    assert lines["y3", "text and image", "solid"].y == (-0.5,) * 3
    assert len(lines) == 8
    assert "&lt;b&gt; left out" in figure.layout.title.text


def test_attention_has_a_panel_for_each_modality():
    rows = [
        {"layer": layer, "name": f"blocks.{layer}.attn.hook_pattern", "modality": modality}
        | {"masked": masked, "mass": 0.1 * layer + shift, "uniform": 0.25, "n_samples": 4}
        for layer in range(2)
        for modality in ("text", "image")
        for masked, shift in (("none", 0.0), ("image", 0.5))
    ]
    found = LastTokenAttention(pd.DataFrame(rows))
    figure = found.plot()
    lines = {(line.yaxis, line.name, line.line.dash): line.y for line in figure.data}
    assert lines["y", "none", "solid"] == (0, 0.1)
    assert lines["y2", "image", "solid"] == (0.5, 0.6)
    assert lines["y2", "none", "dot"] == (0.25, 0.25)
    assert len(lines) == 6  # what is even does not depend on what is masked

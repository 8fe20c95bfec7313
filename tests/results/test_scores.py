"""Scores of neurons: ranked, filtered, shown, written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_lens import Neuron
from vlm_lens.results import write_result
from vlm_lens.results.scores import Scores

INF, NAN = float("inf"), float("nan")


def scores_of(values: dict[str, list[float]], **parameters: Any) -> Scores:
    tensors = {name: torch.tensor(some) for name, some in values.items()}
    return Scores(tensors, "demo", parameters)


SCORES = scores_of(
    {
        "vision_encoder.blocks.0.mlp.hook_pre": [0.5, 0.0],
        "projector.hook_out": [4.0, 1.0],
        "blocks.10.hook_mlp_out": [3.0, 2.0, 0.0],
        "blocks.2.hook_mlp_out": [3.0, 0.0],
    },
    alpha=0.5,
)


def test_is_a_mapping() -> None:
    assert list(SCORES)[0] == "vision_encoder.blocks.0.mlp.hook_pre"
    assert len(SCORES) == 4
    assert "projector.hook_out" in SCORES
    assert SCORES["projector.hook_out"].tolist() == [4.0, 1.0]
    assert sum(map(len, SCORES.values())) == 9
    assert dict(SCORES.items()).keys() == set(SCORES)
    with pytest.raises(KeyError):
        SCORES["blocks.3.hook_mlp_out"]


def test_top_is_best_first_and_breaks_ties_by_layer() -> None:
    best = SCORES.top(4)
    assert [str(neuron) for neuron in best] == [
        *("projector.hook_out[0]", "blocks.2.hook_mlp_out[0]"),
        *("blocks.10.hook_mlp_out[0]", "blocks.10.hook_mlp_out[1]"),
    ]
    assert best.sizes["blocks.10.hook_mlp_out"] == 3
    assert len(SCORES.top(9)) == 9
    with pytest.raises(ValueError, match="top 10, but only 9 neurons"):
        SCORES.top(10)


def test_a_ranking_is_of_positive_scores() -> None:
    ranking = SCORES.ranking()
    assert len(ranking) == 6
    assert ranking[:4] == SCORES.top(4)
    assert list(SCORES.ranking(3)) == list(SCORES.top(3))
    assert list(SCORES.ranking(100)) == list(ranking)
    assert len(scores_of({"hook_embed": [0.0, 0.0]}).ranking()) == 0
    assert len(scores_of({}).ranking()) == 0


def test_what_is_infinite_ranks_first_and_what_is_nan_not_at_all() -> None:
    scores = scores_of({"hook_embed": [1.0, NAN, INF, 0.0]})
    assert [neuron.index for neuron in scores.ranking()] == [2, 0]
    assert [neuron.index for neuron in scores.top(3)] == [2, 0, 3]
    with pytest.raises(ValueError, match="only 3 neurons have a score .* 1 without a score"):
        scores.top(4)
    assert repr(scores) == "Scores(demo: 4 neurons at 1 hook point; 1 without a score)"


def test_filters() -> None:
    assert list(SCORES.filter(component="language_model")) == [
        *("blocks.10.hook_mlp_out", "blocks.2.hook_mlp_out"),
    ]
    assert list(SCORES.filter(layer=[0, 2])) == [
        *("vision_encoder.blocks.0.mlp.hook_pre", "blocks.2.hook_mlp_out"),
    ]
    only = SCORES.filter(layer=10, site="hook_mlp_out")
    assert list(only) == ["blocks.10.hook_mlp_out"]
    assert (only.method, only.parameters) == ("demo", {"alpha": 0.5})
    assert list(only.top(1)) == [Neuron("blocks.10.hook_mlp_out", 0)]
    assert len(SCORES.filter(component="qformer")) == 0


def test_as_a_table() -> None:
    table = SCORES.to_dataframe(2)
    assert table["score"].tolist() == [4.0, 3.0]
    assert table["name"].tolist() == ["projector.hook_out", "blocks.2.hook_mlp_out"]
    assert len(SCORES.to_dataframe(100)) == 6
    html = SCORES._repr_html_()
    assert "demo: 9 neurons at 4 hook points" in html
    assert "projector.hook_out" in html
    assert scores_of({})._repr_html_()


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    parameters: dict[str, Any] = {"alpha": 0.5, "left_out": [1], "note": None, "x": {"y": INF}}
    scores = scores_of({"blocks.1.hook_mlp_out": [1.0, NAN, INF], "hook_embed": [2.0]})
    scores = Scores(scores.scores, "CAN", parameters)
    scores.save(tmp_path / "new")
    written = [path.suffix for path in (tmp_path / "new").iterdir()]
    assert sorted(written) == [".json", ".safetensors"]
    read = Scores.load(tmp_path / "new")
    assert (read.method, read.parameters) == ("CAN", parameters)
    assert list(read) == list(scores)
    for name, values in scores.items():
        torch.testing.assert_close(read[name], values, rtol=0, atol=0, equal_nan=True)


def test_what_is_not_there_or_incomplete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Scores.load(tmp_path)
    fields = {"method": "CAN", "parameters": {}, "scores": {"hook_embed": {"tensor": "a"}}}
    write_result(tmp_path, kind="scores", fields=fields)
    with pytest.raises(ValueError, match="no result that Scores.load can read: KeyError"):
        Scores.load(tmp_path)
    write_result(tmp_path, kind="scores", fields={"scores": {}})
    with pytest.raises(ValueError, match="argument: 'method'"):
        Scores.load(tmp_path)


# Axes ---------------------------------------------------------------------------------------------

AXES = {"metric": ("mean", "max"), "group": ("a", "b")}
BY_AXES = Scores(
    {
        "blocks.0.hook_mlp_out": torch.arange(12.0).view(2, 2, 3),
        "blocks.1.hook_mlp_out": -torch.arange(12.0).view(2, 2, 3),
    },
    "demo",
    {"alpha": 0.5},
    AXES,
    ("a note",),
)


def test_labels_choose_and_what_is_left_stays() -> None:
    one = BY_AXES.of(group="b")
    assert (one.axes, one.notes) == ({"metric": ("mean", "max")}, ("a note",))
    assert one["blocks.0.hook_mlp_out"].tolist() == [[3, 4, 5], [9, 10, 11]]
    assert one.of(metric="max")["blocks.1.hook_mlp_out"].tolist() == [-9, -10, -11]
    assert BY_AXES.of(metric="max", group="b").parameters == {"alpha": 0.5}
    assert "demo by metric by group: 6 neurons" in repr(BY_AXES)


def test_a_function_maps_all_scores() -> None:
    halved = BY_AXES.map(lambda values: values / 2)
    assert halved.axes == AXES
    assert halved["blocks.0.hook_mlp_out"][1, 1].tolist() == [4.5, 5, 5.5]


def test_each_label_has_its_best_neurons() -> None:
    sets = BY_AXES.of(metric="mean").each("group", k=1)
    assert {label: str(neurons[0]) for label, neurons in sets.items()} == {
        "a": "blocks.0.hook_mlp_out[2]",
        "b": "blocks.0.hook_mlp_out[2]",
    }
    assert len(BY_AXES.of(metric="mean", group="a").top(ratio=0.5)) == 3
    assert len(BY_AXES.of(metric="mean", group="a").top(threshold=1.0)) == 2
    table = BY_AXES.to_dataframe(1)
    assert table[["metric", "group", "score"]].values.tolist() == [
        ["mean", "a", 2.0],
        ["mean", "b", 5.0],
        ["max", "a", 8.0],
        ["max", "b", 11.0],
    ]


def test_axes_come_back_from_a_file(tmp_path: Path) -> None:
    BY_AXES.save(tmp_path)
    read = Scores.load(tmp_path)
    assert (read.axes, read.notes) == (AXES, ("a note",))
    assert torch.equal(read.stacked(), BY_AXES.stacked())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected scores \[group, neuron\] of sizes \[2\]"):
        Scores({"hook_embed": torch.zeros(3, 2)}, "demo", axes={"group": ("a", "b")})
    with pytest.raises(ValueError, match="got group='c'"):
        BY_AXES.of(group="c")
    with pytest.raises(ValueError, match="expected an axis of .* got 'modality'"):
        BY_AXES.each("modality", k=1)
    with pytest.raises(ValueError, match=r"choose one first, such as scores.of\(metric='mean'\)"):
        BY_AXES.top(1)
    with pytest.raises(ValueError, match="expected as many neurons at every hook point"):
        SCORES.stacked()

"""Scores of neurons: ranked, filtered, shown, written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vlm_lens import Neuron
from vlm_lens.analyses.scores import NeuronScores
from vlm_lens.results import write_result

INF, NAN = float("inf"), float("nan")


def scores_of(values: dict[str, list[float]], **parameters: Any) -> NeuronScores:
    tensors = {name: torch.tensor(some) for name, some in values.items()}
    return NeuronScores(tensors, "demo", parameters)


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
    assert repr(scores) == "NeuronScores(demo: 4 neurons at 1 hook point; 1 without a score)"


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
    scores = NeuronScores(scores.scores, "CAN", parameters)
    scores.save(tmp_path / "new")
    written = [path.suffix for path in (tmp_path / "new").iterdir()]
    assert sorted(written) == [".json", ".safetensors"]
    read = NeuronScores.load(tmp_path / "new")
    assert (read.method, read.parameters) == ("CAN", parameters)
    assert list(read) == list(scores)
    for name, values in scores.items():
        torch.testing.assert_close(read[name], values, rtol=0, atol=0, equal_nan=True)


def test_what_is_not_there_or_incomplete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        NeuronScores.load(tmp_path)
    fields = {"method": "CAN", "parameters": {}, "scores": {"hook_embed": {"tensor": "a"}}}
    write_result(tmp_path, kind="scores", fields=fields)
    with pytest.raises(ValueError, match="no result that NeuronScores.load can read: KeyError"):
        NeuronScores.load(tmp_path)
    write_result(tmp_path, kind="scores", fields={"scores": {}})
    with pytest.raises(ValueError, match="argument: 'method'"):
        NeuronScores.load(tmp_path)

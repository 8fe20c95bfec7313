"""The tables on models in which it is known what is critical, where, and what is an artefact."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.analyses.planted import ANSWER, SPIKE, samples
from tests.analyses.planted_tables import (
    DOWN,
    SHORT,
    built,
    down,
    questions_and_statements,
    row,
    scored,
    two_kinds,
)
from tests.conftest import assert_no_hooks
from vlm_lens import Neuron, NeuronSet
from vlm_lens.analyses import can
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.analyses.critical_tables import (
    against_artefacts,
    against_baselines,
    by_category,
    by_component,
    by_matrix,
)
from vlm_lens.data import Sample
from vlm_lens.masking import PERPLEXITY_RATIO, Criterion
from vlm_lens.results.scores import Scores

# By place -----------------------------------------------------------------------------------------


def test_by_matrix_finds_the_matrix_and_needs_many_elsewhere():
    """24 units write one channel: it takes one neuron of down, and nearly all 24 of gate or up."""
    model = built("spread out").model
    found = by_matrix(model, samples(), scored("spread out"), max_k=40, **SHORT)
    assert list(found) == ["all matrices", "gate", "up", "down"]
    ks = {label: result.k for label, result in found.items()}
    assert ks["all matrices"] == ks["down"] == 1
    assert 20 <= ks["gate"] <= 24
    assert 20 <= ks["up"] <= 24
    assert found["down"].neurons == NeuronSet([down(1, ANSWER)])
    for label, site in {"gate": "mlp.hook_pre", "up": "mlp.hook_pre_linear"}.items():
        assert found[label].neurons.count_by("name") == {f"blocks.1.{site}": ks[label]}
        assert found[label].ranking.count_by("site").keys() == {site}
    # Where the first one ends, all have been measured.
    assert found.k == 1
    assert found.table()["perplexity_ratio at 1"].notna().all()
    assert row(found, "down")["perplexity_ratio"] > 100
    assert row(found, "gate")["perplexity_ratio"] == pytest.approx(1, rel=1e-3)
    assert row(found, "gate")["collapsed"] is not True
    assert [result.method for result in found.values()] == list(found)
    assert_no_hooks(model)


@pytest.mark.full
def test_by_matrix_knows_gates_where_only_one_matrix_is_ranked():
    model = built("spread out").model
    found = by_matrix(model, samples(), scored("spread out", sites=DOWN), max_k=3, **SHORT)
    assert list(found) == ["down"]
    tower = by_matrix(
        model, samples(), scored("spread out"), component="vision_encoder", max_k=3, **SHORT
    )
    assert list(tower) == ["all matrices", "fc1", "fc2"]
    with pytest.raises(ValueError, match="neurons of 'qformer', got one of vision_encoder, proj"):
        by_matrix(model, samples(), scored("spread out"), component="qformer")


@pytest.mark.full
def test_by_component_finds_the_component():
    found = by_component(
        built("spread out").model, samples(), scored("spread out"), max_k=100, **SHORT
    )
    assert list(found) == ["all components", "language_model", "projector", "vision_encoder"]
    assert {label: result.k for label, result in found.items()} == {
        "all components": 1,
        "language_model": 1,
        "projector": None,
        "vision_encoder": None,
    }
    for label, result in list(found.items())[1:]:
        assert result.ranking.count_by("component").keys() == {label}
    assert row(found, "projector")["agreement"] == 1


@pytest.mark.full
def test_one_component_alone_is_not_told_twice():
    scores = scored("spread out").filter(component="language_model")
    found = by_component(built("spread out").model, samples(), scores, max_k=2, **SHORT)
    assert list(found) == ["language_model"]


@pytest.mark.full
def test_a_ranking_may_be_of_neurons_without_scores():
    """As PCICN's are; with the criteria of that method."""
    ranking = scored("spread out").ranking()
    options: Any = {**SHORT, "collapse": [Criterion(PERPLEXITY_RATIO, at_least=10.0)], "max_k": 30}
    found = by_matrix(built("spread out").model, samples(), ranking, **options)
    ks = {label: result.k or 0 for label, result in found.items()}
    assert ks["all matrices"] == ks["down"] == 1
    assert 20 <= ks["gate"] <= 24
    assert 20 <= ks["up"] <= 24
    parts = by_component(built("spread out").model, samples(), ranking, **options)
    assert parts["language_model"].k == 1


@pytest.mark.full
def test_a_part_without_a_score_is_left_out_and_said():
    model, scores = built("spread out").model, scored("spread out")
    silent = Scores(
        {
            name: values * 0 if name.startswith("projector") else values
            for name, values in scores.items()
        },
        "CAN",
        scores.parameters,
    )
    with pytest.warns(UserWarning, match="'projector' is left out: no neuron there has a score"):
        found = by_component(model, samples(), silent, max_k=2, **SHORT)
    assert "projector" not in found
    nothing = scores.filter(component="vision_encoder", layer=2)
    assert not nothing.ranking()
    for empty in (nothing, NeuronSet()):
        with pytest.raises(ValueError, match="expected neurons to mask, got none with a score ab"):
            by_component(model, samples(), empty, max_k=2, **SHORT)


def test_text_alone_has_no_rows_of_what_it_does_not_reach():
    texts = [sample for sample in samples() if not sample.images]
    model = built("spread out").model
    with pytest.warns(UserWarning, match="no sample reached them"):
        scores = can.score(model, texts, **SHORT)
    found = by_component(model, texts, scores, max_k=3, **SHORT)
    assert list(found) == ["language_model"]
    assert found.k == 1


# By category --------------------------------------------------------------------------------------


@pytest.mark.full
def test_by_category_ranks_and_measures_each_alone():
    tiny, asked = two_kinds(), questions_and_statements()
    others = [Sample(images=[], text="what ?")]
    found = by_category(
        tiny.model,
        [*asked, *others],
        score=partial(can.score, sites=DOWN, max_new_tokens=1),
        max_new_tokens=1,
    )
    assert list(found) == ["all categories", "statement", "question"]
    assert {label: result.k for label, result in found.items()} == {
        "all categories": 2,
        "statement": 1,
        "question": 1,
    }
    assert set(found["all categories"].neurons) == {down(2, SPIKE), down(2, ANSWER)}
    assert list(found["statement"].neurons) == [down(2, ANSWER)]
    assert list(found["question"].neurons) == [down(2, SPIKE)]
    assert found["question"].prompts == tuple(s.text for s in asked if s.category == "question")
    assert len(found["all categories"].prompts) == len(asked)
    assert found.table()["perplexity_ratio at 2"].notna().all()


def test_by_category_scores_as_it_searches():
    """Target, batch size and length of answers are the same in both."""
    asked = questions_and_statements()[:4]
    found = by_category(
        built("blank").model, asked, target="answer", batch_size=2, max_new_tokens=3, max_k=2
    )
    for result in found.values():
        scoring = result.parameters["score"]
        assert (scoring["target"], scoring["batch_size"], scoring["max_new_tokens"]) == (
            "answer",
            2,
            3,
        )
        assert result.parameters["target"] == "answer"


def test_by_category_needs_categories():
    with pytest.raises(ValueError, match="samples with a category, got none: set Sample.category"):
        by_category(built("blank").model, samples())
    one = [s for s in questions_and_statements() if s.category == "question"][:2]
    assert list(by_category(built("blank").model, one, max_k=1, **SHORT)) == ["question"]


# What all tables share ----------------------------------------------------------------------------


@pytest.mark.full
def test_all_are_measured_where_the_first_one_ends():
    """Two ways to the answers, each through gate, up and down, and idle neurons in between."""
    gate, up, down_name = (
        f"blocks.2.{site}" for site in ("mlp.hook_pre", "mlp.hook_pre_linear", "hook_mlp_out")
    )
    idle = [Neuron(name, i) for i in range(9) for name in (gate, up, down_name) if i not in (3, 5)]
    ways = [
        [Neuron(gate, unit), Neuron(up, unit), Neuron(down_name, channel)]
        for unit, channel in ((3, SPIKE), (5, ANSWER))
    ]
    ranking = NeuronSet(
        [*ways[0], *idle[:3], *ways[1], *idle[3:]], sizes={gate: 64, up: 64, down_name: 32}
    )
    model, asked = built("two kinds").model, questions_and_statements()
    found = by_matrix(model, asked, ranking, max_new_tokens=1)
    assert [result.k for result in found.values()] == [7, 3, 3, 3]
    table = found.table()
    assert table["perplexity_ratio at 7"].notna().all()
    assert table["search"].tolist() == ["all matrices", "gate", "up", "down"]
    assert table["shared at 7"].tolist() == [7, 3, 2, 2]


@pytest.mark.full
def test_without_a_collapse_all_are_compared_where_the_first_ended():
    found = against_baselines(
        built("blank").model, samples(), scored("blank"), seeds=[0], max_k=6, **SHORT
    )
    assert found["CAN"].k is None
    assert found.k == 6
    table = found.table()
    assert table["k*"].isna().all()
    assert table["perplexity_ratio at 6"].notna().all()


@pytest.mark.full
def test_k_of_the_user_are_measured_as_well():
    found = by_matrix(
        built("spread out").model,
        samples(),
        scored("spread out"),
        also_at=[3, 5],
        max_k=12,
        **SHORT,
    )
    for result in found.values():
        assert {1, 3, 5} <= {measured.k for measured in result.curve}


@pytest.mark.full
def test_a_table_goes_on_from_a_checkpoint(tmp_path: Path):
    """Each search has a folder of its own: their measurements are not each other's."""
    model, scores = built("spread out").model, scored("spread out")
    options: Any = {"max_k": 30, "checkpoint": tmp_path, **SHORT}
    expected = by_matrix(model, samples(), scores, max_k=30, **SHORT)

    def interrupted(measured: Any) -> None:
        if measured.k == 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        by_matrix(model, samples(), scores, on_measure=interrupted, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00", "01"]
    told: list[int] = []
    found = by_matrix(
        model,
        samples(),
        scores,
        on_measure=lambda measured: told.append(measured.k),
        **options,
    )
    pd.testing.assert_frame_equal(found.table(), expected.table())
    n_measured = sum(len(result.curve) for result in expected.values())
    assert len(told) < n_measured


@pytest.mark.full
def test_a_table_survives_a_disk(tmp_path: Path):
    found = against_artefacts(
        built("gate").model, samples(), scored("gate", sites=DOWN), max_k=4, seeds=[0], **SHORT
    )
    found.save(tmp_path)
    again = Comparison.load(tmp_path)
    assert again.title == found.title
    assert list(again) == list(found)
    pd.testing.assert_frame_equal(again.table(), found.table())
    for label, result in found.items():
        pd.testing.assert_frame_equal(again[label].table(), result.table())
        assert again[label].notes == result.notes
        assert again[label].parameters == result.parameters
        assert list(again[label].ranking) == list(result.ranking)
        assert result.parameters["versions"]["torch"] == torch.__version__
    assert str(again) == str(found)
    assert len(again.plot().data) == len(found.plot().data) > 0

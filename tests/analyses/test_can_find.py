"""CAN's search: planted models, what it measures, and that nothing else decides the result."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.analyses.planted import (
    ANSWER,
    SPIKE,
    UNIT,
    samples,
)
from tests.analyses.planted_tables import (
    DOWN,
    SHORT,
    built,
    down,
    overflowing,
    questions_and_statements,
    scored,
)
from tests.conftest import assert_no_hooks
from tests.masking.reference import Slow
from vlm_lens import HookedVLM, Neuron, NeuronSet
from vlm_lens.analyses import can
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.data import Sample
from vlm_lens.masking import (
    ACCURACY,
    AGREEMENT,
    OWN_PERPLEXITY,
    PERPLEXITY_RATIO,
    Criterion,
    word_overlap,
)
from vlm_lens.neurons.controls import random_neurons
from vlm_lens.results.scores import Scores

N_TOKENS = SHORT["max_new_tokens"]
IMAGE_TOKEN = 4


def find(name: str, scores: Scores | NeuronSet | None = None, **options: Any):
    ranking = scored(name) if scores is None else scores
    return can.find_critical(built(name).model, samples(), ranking, **{**SHORT, **options})


# Planted models -----------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "critical"),
    [
        ("spike", [down(0, SPIKE)]),
        ("gate", [down(2, ANSWER)]),
        ("spread out", [down(1, ANSWER)]),
        ("gate and spike", [down(2, ANSWER)]),
    ],
)
def test_one_planted_neuron_is_ranked_first_and_is_all_it_takes(name: str, critical: list[Neuron]):
    found = find(name)
    assert found.k == 1
    assert list(found.neurons) == critical
    assert found.is_monotone
    assert found.curve[1].metrics["perplexity_ratio"] > 10
    assert found.curve[1].metrics["similarity"] < 0.3
    assert_no_hooks(built(name).model)


def test_a_single_gate_is_critical_at_each_of_its_matrices():
    """The unit's gate, its linear part and the channel that it writes."""
    unit = {
        "blocks.*.mlp.hook_pre": Neuron("blocks.2.mlp.hook_pre", UNIT),
        "blocks.*.mlp.hook_pre_linear": Neuron("blocks.2.mlp.hook_pre_linear", UNIT),
        "blocks.*.mlp.hook_post": Neuron("blocks.2.mlp.hook_post", UNIT),
    }
    for sites, neuron in unit.items():
        found = find("gate", scored("gate", sites=sites))
        assert list(found.neurons) == [neuron]


def test_two_planted_neurons_are_ranked_first_and_it_takes_both():
    found = find("large and small", scored("large and small", sites=DOWN))
    assert found.k == 2
    assert set(found.neurons) == {down(2, SPIKE), down(2, ANSWER)}
    assert found.curve[1].metrics["perplexity_ratio"] == pytest.approx(1, rel=1e-3)


@pytest.mark.full
def test_without_plants_it_takes_more_and_at_random_far_more():
    assert (find("blank").k or math.inf) > 10
    for name in ("gate", "spread out"):
        drawn = random_neurons(scored(name).ranking(), avoid="never")
        assert (find(name, drawn, max_k=128).k or math.inf) > 50


# One at a time ------------------------------------------------------------------------------------


def slow_search(
    model: HookedVLM, asked: list[Sample], ranking: NeuronSet, n_tokens: int
) -> tuple[int | None, list[float]]:
    """Masks one more neuron at a time and asks one sample at a time, with plain PyTorch hooks."""
    slow = Slow(model, max_new_tokens=n_tokens, never=[IMAGE_TOKEN])
    answers = [slow.answer(sample) for sample in asked]
    texts = [slow.text(sample) for sample in asked]
    perplexities = []
    for k in range(len(ranking) + 1):
        parts = [slow.nll(s, a, ranking[:k]) for s, a in zip(asked, answers, strict=True)]
        nll, n = map(sum, zip(*parts, strict=True))
        perplexities.append(math.exp(nll / n))
        if perplexities[-1] >= 10 * perplexities[0]:
            alike = word_overlap([slow.text(s, ranking[:k]) for s in asked], texts)
            if sum(alike) / len(alike) <= 0.3:
                return k, perplexities
    return None, perplexities


@pytest.mark.full
def test_the_search_gives_what_one_at_a_time_gives():
    """Where two of the neurons decide, which are not the first two."""
    model, asked = built("two kinds").model, questions_and_statements(4)
    scores = can.score(model, asked, max_new_tokens=1)
    k, perplexities = slow_search(model, asked, scores.ranking(8), 1)
    assert k is not None
    assert k > 2
    ways: list[dict[str, Any]] = [{}, {"exhaustive": True}, {"width": 4, "rows": 16}]
    for options in [*ways, {"batch_size": 1}, {"batch_size": 3, "reuse": False}]:
        found = can.find_critical(model, asked, scores, max_k=8, max_new_tokens=1, **options)
        assert found.k == k
        for measured in found.curve:
            if measured.k <= k:
                expected = perplexities[measured.k]
                assert measured.metrics["perplexity"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.full
def test_results_do_not_depend_on_batches_and_padding():
    """Prompts of different length and one without an image: padded on the left, unless alone."""
    for name in ("spike", "large and small"):
        ranking = scored(name, sites=DOWN)
        one, four, many = (
            find(name, ranking, batch_size=n, also_at=[7], max_k=8) for n in (1, 4, 16)
        )
        for other in (four, many):
            assert (other.k, other.stages) == (one.k, one.stages)
            pd.testing.assert_frame_equal(other.table(), one.table(), rtol=1e-4)
            assert [m.answers for m in other.curve] == [m.answers for m in one.curve]


def test_results_are_the_same_from_run_to_run():
    before = torch.get_rng_state()
    model = built("gate and spike").model
    first, second = (
        can.find_critical(model, samples(), can.score(model, samples(), **SHORT), **SHORT)
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(first.table(), second.table())
    assert list(first.ranking) == list(second.ranking)
    assert first.stages == second.stages


# What is not finite -------------------------------------------------------------------------------


def test_what_is_not_finite_is_a_collapse_and_no_error():
    """Without the neuron that keeps another from overflowing, and unlike without both."""
    tiny, ranking = overflowing()
    asked = [sample for sample in samples() if sample.images]
    collapse = (Criterion(PERPLEXITY_RATIO, at_least=10.0),)
    found = can.find_critical(tiny.model, asked, ranking, collapse=collapse, **SHORT)
    assert found.k == 2
    assert {m.k: math.isfinite(m.metrics["perplexity"]) for m in found.curve} == {
        0: True,
        1: True,
        2: False,
        3: True,
    }
    assert not found.is_monotone
    assert "the perplexity is not finite, which counts as collapse, at k = 2" in found.notes


# Options ------------------------------------------------------------------------------------------


def test_options_reach_the_search(tmp_path: Path):
    told: list[int] = []
    found = find(
        "gate",
        method="mine",
        target="answer",
        max_k=9,
        collapse=(Criterion(AGREEMENT, at_most=-1.0),),
        degraded=Criterion(PERPLEXITY_RATIO, at_least=3.0),
        metrics=(ACCURACY,),
        also_at=[4],
        probes=3,
        first_token=False,
        fill="mean",
        batch_size=2,
        parameters={"seed": 5},
        checkpoint=tmp_path,
        on_measure=lambda measured: told.append(measured.k),
    )
    expected = {
        "collapse": ["agreement <= -1"],
        "degraded": "perplexity_ratio >= 3",
        "metrics": ["accuracy"],
        "max_k": 9,
        "probes": 3,
        "first_token": False,
        "fill": "mean",
        "max_new_tokens": N_TOKENS,
        "batch_size": 2,
        "target": "answer",
        "seed": 5,
        "n_samples": 6,
        "score": scored("gate").parameters,
    }
    assert {name: found.parameters[name] for name in expected} == expected
    assert found.method == "mine"
    assert found.k is None
    assert "no collapse within 9 neurons" in found.notes
    assert len(found.ranking) == 9
    assert set(told) == {measured.k for measured in found.curve} >= {0, 4, 9}
    assert (tmp_path / "search.json").exists()
    assert found.sizes == {name: len(values) for name, values in scored("gate").items()}


def test_values_can_be_given():
    """Those that the neurons have are none that harm; their negatives do."""
    model, ranking = built("gate").model, scored("gate").ranking(5)
    inputs = model.prepare(text="<image> what color ?", images=samples()[0].images)
    with torch.no_grad():
        _, kept = model.run_with_cache(inputs, names_filter=list(ranking.names))
    same = {name: kept[name][0, -1] for name in ranking.names}
    assert find("gate", ranking, fill=same).k is None
    assert find("gate", ranking, fill={n: -v for n, v in same.items()}).k == 1
    assert find("gate", ranking, fill=same).parameters["fill"] == "values"


def test_the_first_token_can_be_left_alone():
    assert find("spike", max_k=40).k == 1
    assert find("spike", first_token=False, max_k=40).k is None


def test_an_interrupted_search_goes_on(tmp_path: Path):
    expected = find("blank", max_k=40)

    def interrupt(measured: Any) -> None:
        if measured.k == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find("blank", max_k=40, checkpoint=tmp_path, on_measure=interrupt)
    assert_no_hooks(built("blank").model)
    told: list[int] = []
    found = find("blank", max_k=40, checkpoint=tmp_path, on_measure=lambda m: told.append(m.k))
    pd.testing.assert_frame_equal(found.table(), expected.table())
    assert not {0, 1, 2, 4, 8} & {k for k in told if found.k != k and found.stages.onset != k}


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="most_k"):
        find("gate", most_k=3)


def test_an_empty_ranking_is_refused():
    nothing = Scores({"blocks.0.hook_mlp_out": torch.zeros(32)}, "CAN")
    for empty in (NeuronSet(), nothing):
        for options in ({}, {"fill": "mean"}):
            with pytest.raises(ValueError, match="rank"):
                find("gate", empty, **options)


def test_bad_requests_are_refused(unchecked: None):
    model, scores = built("gate").model, scored("gate")
    with pytest.raises(ValueError, match="at least one sample"):
        can.find_critical(model, [], scores)
    with pytest.raises(ValueError, match="answer"):
        can.find_critical(model, [Sample([], "what ?")], scores, target="answer")
    for max_k in (0, -1):
        with pytest.raises(ValueError, match="max_k"):
            find("gate", max_k=max_k)
    unsized = NeuronSet([down(0, 1)])
    with pytest.raises(ValueError, match="number of neurons at 'blocks.0.hook_mlp_out' is not kn"):
        find("gate", unsized)
    assert_no_hooks(model)


def test_a_result_survives_a_disk(tmp_path: Path):
    found = find("spike", metrics=(OWN_PERPLEXITY, ACCURACY), max_k=20)
    found.save(tmp_path)
    again = CriticalNeurons.load(tmp_path)
    pd.testing.assert_frame_equal(again.table(), found.table())
    for name in found.__dataclass_fields__:
        if name not in ("ranking", "curve"):
            assert getattr(again, name) == getattr(found, name), name
    assert list(again.ranking) == list(found.ranking)
    assert [m.answers for m in again.curve] == [m.answers for m in found.curve]
    histogram = again.histogram("matrix").set_index(["component", "matrix"])["critical"]
    assert histogram["language_model", "down"] == 1
    assert histogram.sum() == 1

"""Baselines and controls on models in which it is known what is critical, and what an artefact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.analyses.planted import ANSWER, SPIKE, blank, plant_gate, samples
from tests.analyses.planted_tables import (
    DOWN,
    SHORT,
    built,
    down,
    overflowing,
    questions_and_statements,
    row,
    scored,
    two_kinds,
)
from tests.conftest import assert_no_hooks
from tests.tiny import build_tiny
from vlm_lens import HookedVLM, NeuronSet
from vlm_lens.analyses import can
from vlm_lens.analyses.critical_tables import (
    against_artefacts,
    against_baselines,
)
from vlm_lens.masking import PERPLEXITY_RATIO, Criterion
from vlm_lens.neurons.controls import random_neurons
from vlm_lens.results.scores import Scores

# Against baselines --------------------------------------------------------------------------------


@pytest.mark.full
def test_either_ingredient_misses_what_both_together_find():
    """A large channel and one that is read a lot: activations miss one, gradients the other."""
    model, scores = built("large and small").model, scored("large and small", sites=DOWN)
    found = against_baselines(model, samples(), scores, max_k=60, **SHORT)
    assert list(found) == [
        "CAN",
        "activation only",
        "gradient only",
        *(f"random, seed {seed}" for seed in (0, 1, 2)),
    ]
    both = {down(2, SPIKE), down(2, ANSWER)}
    assert found["CAN"].k == 2
    assert set(found["CAN"].neurons) == both
    by_activation = list(found["activation only"].ranking)
    assert by_activation[0] == down(2, SPIKE)
    assert down(2, ANSWER) not in by_activation  # of 60
    by_gradient = list(found["gradient only"].ranking)
    assert by_gradient.index(down(2, ANSWER)) < 3 < by_gradient.index(down(2, SPIKE))
    for label, result in list(found.items())[1:]:
        assert result.k is None or result.k > 2, label
        assert row(found, label)["collapsed"] == False, label  # noqa: E712
        assert row(found, label)["perplexity_ratio"] < 1.1
        if result.k is not None:
            assert both <= set(result.neurons), label  # there is no other way


def test_random_rankings_need_far_more():
    found = against_baselines(built("gate").model, samples(), scored("gate"), max_k=128, **SHORT)
    assert found["CAN"].k == 1
    drawn = [result for label, result in found.items() if label.startswith("random")]
    assert all(result.k is None or result.k > 100 for result in drawn)
    for result in drawn:
        assert [n.name for n in result.ranking] == [n.name for n in found["CAN"].ranking]
    assert len({tuple(result.ranking) for result in drawn}) == 3
    assert [result.parameters["seed"] for result in drawn] == [0, 1, 2]


@pytest.mark.full
def test_what_is_random_may_be_critical_and_the_table_says_so():
    """One of 32 channels is critical: one random ranking in 32 has it at its first rank."""
    name = "blocks.2.hook_mlp_out"
    ranking = NeuronSet.from_indices({name: [ANSWER]}, sizes={name: 32})
    lucky = [
        seed for seed in range(320) if random_neurons(ranking, seed=seed, avoid="never") == ranking
    ]
    assert 3 <= len(lucky) <= 20
    seeds = [lucky[0], lucky[0] + 1, lucky[1]]
    found = against_baselines(
        built("gate").model, samples(), ranking, seeds=seeds, max_k=1, **SHORT
    )
    table = found.table()[-3:]
    assert table["k*"].fillna(0).tolist() == [1, 0, 1]
    assert table["shared"].tolist() == table["shared at 1"].tolist() == [1, 0, 1]


@pytest.mark.full
def test_ingredients_are_scored_as_the_ranking_was():
    model = built("gate").model
    settings: Any = {"tokens": "mean", "first_token": False, "target": "answer", "batch_size": 4}
    scores = can.score(model, samples(), sites=DOWN, alpha=0.25, **settings)
    found = against_baselines(model, samples(), scores, seeds=[], max_k=5, **SHORT)
    expected = can.score(model, samples(), sites=DOWN, alpha=0, **settings)
    assert list(found["activation only"].ranking) == list(expected.ranking(5))
    of_gradient = found["gradient only"].parameters["score"]
    assert of_gradient["alpha"] == 1
    assert of_gradient["activation_power"] == 0
    assert {name: of_gradient[name] for name in settings} == settings
    assert of_gradient["sites"] == list(scores)


@pytest.mark.full
def test_neurons_without_scores_have_baselines_too():
    ranking = scored("gate").ranking(12)
    found = against_baselines(
        built("gate").model, samples(), ranking, seeds=[0], method="by hand", **SHORT
    )
    assert list(found)[0] == "by hand"
    assert set(found["activation only"].ranking.names) <= set(ranking.names)
    assert found["activation only"].parameters["score"]["max_new_tokens"] == 4


@pytest.mark.full
def test_some_baselines_alone_and_none_that_are_unknown(unchecked: None):
    model, scores = built("gate").model, scored("gate", sites=DOWN)
    options: Any = {"seeds": [0], "max_k": 2, **SHORT}
    found = against_baselines(model, samples(), scores, baselines=["random"], **options)
    assert list(found) == ["CAN", "random, seed 0"]
    found = against_baselines(model, samples(), scores, baselines=["gradient only"], **options)
    assert list(found) == ["CAN", "gradient only"]
    with pytest.raises(ValueError, match="expected baselines of .*, got 'activations'"):
        against_baselines(model, samples(), scores, baselines=["activations"])  # type: ignore


def test_heads_have_no_scores_which_is_said_before_the_search():
    name = "blocks.1.attn.hook_q"
    ranking = NeuronSet.from_indices({name: [3, 11]}, sizes={name: 32})
    options: Any = {"seeds": [0], "on_measure": pytest.fail, **SHORT}
    for table, of in ((against_baselines, {}), (against_artefacts, {"controls": ["same norm"]})):
        with pytest.raises(ValueError, match="'blocks.1.attn.hook_q' has no neuron dimension"):
            table(built("spike").model, samples(), ranking, **of, **options)
    options.pop("on_measure")
    found = against_baselines(
        built("spike").model, samples(), ranking, baselines=["random"], **options
    )
    assert list(found) == ["given", "random, seed 0"]


# Against artefacts --------------------------------------------------------------------------------


@pytest.mark.full
def test_an_attention_sink_is_told_by_leaving_the_first_token_alone():
    """The massive activation sits at the first token, and all it does is to be attended to."""
    model = built("spike").model
    found = against_artefacts(
        model,
        samples(),
        scored("spike"),
        controls=["first token left alone", "same norm"],
        max_k=60,
        **SHORT,
    )
    assert found["CAN"].k == 1
    assert list(found["CAN"].neurons) == [down(0, SPIKE)]
    assert row(found, "CAN")["perplexity_ratio"] > 10
    alone = found["first token left alone"]
    assert list(alone.ranking) == list(found["CAN"].ranking)
    assert alone.k is None
    assert row(found, "first token left alone")["perplexity_ratio"] < 2
    assert alone.parameters["first_token"] is False
    assert found["CAN"].parameters["first_token"] is True


@pytest.mark.full
def test_what_has_no_match_in_norm_is_noted():
    """A massive activation has none, so that its control controls for nothing."""
    found = against_artefacts(
        built("spike").model, samples(), scored("spike"), controls=["same norm"], max_k=20, **SHORT
    )
    assert list(found) == ["CAN", *(f"same norm, seed {seed}" for seed in (0, 1, 2))]
    for seed in (0, 1, 2):
        control = found[f"same norm, seed {seed}"]
        assert control.notes[0].startswith(
            "1 of 1 critical neurons have no match within a factor of 2, least of all "
            f"blocks.0.hook_mlp_out[{SPIKE}]: 3"
        )
        assert not set(control.ranking) & set(found["CAN"].neurons)
        assert [n.name for n in control.ranking] == [n.name for n in found["CAN"].ranking]
        assert control.parameters["seed"] == seed
        assert control.parameters["nearest"] == 8
        assert control.k is None


@pytest.mark.full
def test_what_has_a_match_in_norm_is_not_noted():
    """Another channel as large as the critical one, and idle: masking it does no harm."""
    model = built("twins").model
    found = against_artefacts(
        model,
        samples(),
        scored("twins", sites="blocks.2.hook_mlp_out"),
        controls=["same norm"],
        seeds=range(20),
        max_k=1,
        **SHORT,
    )
    assert list(found["CAN"].neurons) == [down(2, ANSWER)]
    assert row(found, "CAN")["perplexity_ratio"] > 10
    idle = {label: r for label, r in found.items() if down(2, SPIKE) in r.ranking}
    assert 0 < len(idle) < 20  # it is one of the eight nearest
    for label, result in found.items():
        assert any("no match" in note for note in result.notes) == (
            label != "CAN" and label not in idle
        )
    assert all(row(found, label)["perplexity_ratio"] < 2 for label in idle)


def test_where_most_of_a_layer_is_critical_there_are_no_others_and_that_is_noted():
    name, model = "blocks.1.hook_mlp_out", built("spread out").model
    order = [i for i in range(32) if i != ANSWER]
    ranking = NeuronSet.from_indices({name: [*order[:19], ANSWER]}, sizes={name: 32})
    found = against_artefacts(model, samples(), ranking, controls=["same norm"], seeds=[0], **SHORT)
    assert found["given"].k == 20
    control = found["same norm, seed 0"]
    assert "8 of 20 critical neurons are among their own matches" in " ".join(control.notes)
    assert row(found, "same norm, seed 0")["shared"] in (0, 8)


def test_a_constant_is_told_by_mean_ablation():
    """The gate is as good as constant: the answer needs its value, but nothing that it says."""
    found = against_artefacts(
        built("gate").model,
        samples(),
        scored("gate"),
        controls=["mean ablation", "first token left alone"],
        max_k=60,
        **SHORT,
    )
    assert found["CAN"].k == 1
    assert list(found["CAN"].neurons) == [down(2, ANSWER)]
    assert found["mean ablation"].k is None
    assert row(found, "mean ablation")["perplexity_ratio"] == pytest.approx(1, rel=0.05)
    assert found["mean ablation"].parameters["fill"] == "mean"
    assert found["first token left alone"].k == 1


def test_what_says_something_is_lost_with_its_mean_as_well():
    """Channels that tell questions from statements: their means say "red" to all, or "blue"."""
    tiny, asked = two_kinds(), questions_and_statements()
    scores = can.score(tiny.model, asked, sites=DOWN, max_new_tokens=1)
    found = against_artefacts(
        tiny.model, asked, scores, controls=["mean ablation"], max_k=4, max_new_tokens=1
    )
    assert found["CAN"].k == 2
    means = found["mean ablation"]
    assert means.stages.onset is not None
    assert row(found, "mean ablation")["perplexity_ratio"] > 10
    assert row(found, "mean ablation")["agreement"] <= 0.5


@pytest.mark.full
def test_halves_differ_and_find_the_same_neuron():
    found = against_artefacts(
        built("gate").model,
        samples(12),
        can.score(built("gate").model, samples(12), **SHORT),
        controls=["half of the samples"],
        max_k=5,
        **SHORT,
    )
    halves = list(found.values())[1:]
    assert len({half.prompts + tuple(map(str, half.ranking)) for half in halves}) == 3
    for seed, half in enumerate(halves):
        assert half.method == f"half of the samples, seed {seed}"
        assert len(half.prompts) == 6
        assert half.k == 1
        assert list(half.neurons) == [down(2, ANSWER)]
        assert half.parameters["score"]["n_samples"] == half.parameters["n_samples"] == 6
    assert (found.table()["shared at 1"] == 1).all()


@pytest.mark.full
def test_halves_are_ranked_as_the_whole_was():
    model = built("gate").model
    scores = can.score(model, samples(), sites=DOWN, alpha=0.75, tokens="sum", **SHORT)
    options: Any = {**SHORT, "controls": ["half of the samples"], "seeds": [1], "max_k": 2}
    found = against_artefacts(model, samples(), scores, **options)
    scoring = found["half of the samples, seed 1"].parameters["score"]
    for name in ("alpha", "tokens", "sites", "target", "max_new_tokens", "first_token"):
        assert scoring[name] == scores.parameters[name]
    calls = []

    def score(model: HookedVLM, some: Any) -> NeuronSet:
        calls.append(len(some))
        return scores.ranking(7)

    against_artefacts(model, samples(), scores.ranking(), score=score, **options)
    assert calls == [3]
    against_artefacts(model, samples()[:1], scores, **options)  # half of one is one


def test_a_ranking_of_unknown_origin_needs_a_score_for_its_halves():
    model, ranking = built("gate").model, scored("gate").ranking(20)
    other = Scores(dict(scored("gate")), "another method")
    for unknown in (ranking, other):
        with pytest.raises(ValueError, match="pass score, .* or leave 'half of the samples' out"):
            against_artefacts(model, samples(), unknown, **SHORT)
    found = against_artefacts(
        model, samples(), ranking, controls=["same norm"], seeds=[0], max_k=2, **SHORT
    )
    assert list(found) == ["given", "same norm, seed 0"]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("dtype", "higher"), [("bfloat16", "float32"), ("float16", "float32"), ("float32", "float64")]
)
def test_a_higher_precision_is_tried(dtype: str, higher: str):
    tiny = blank()
    plant_gate(tiny)
    model = HookedVLM(tiny.hf.to(getattr(torch, dtype)), processor=tiny.processor)
    before = {name: p.clone() for name, p in model.hf_model.named_parameters()}
    scores = can.score(model, samples(), sites=DOWN, **SHORT)
    found = against_artefacts(
        model, samples(), scores, controls=["higher precision"], max_k=4, **SHORT
    )
    assert list(found) == ["CAN", higher]
    assert [result.parameters["dtype"] for result in found.values()] == [dtype, higher]
    assert [result.k for result in found.values()] == [1, 1]
    ratios = found.table()["perplexity_ratio at 1"].tolist()
    assert ratios[0] == pytest.approx(ratios[1], rel=0.1)
    assert ratios[0] != ratios[1]
    assert model.cfg.dtype == getattr(torch, dtype)
    assert all(torch.equal(p, before[n]) for n, p in model.hf_model.named_parameters())
    assert_no_hooks(model)


def test_there_is_nothing_above_double_precision():
    model = build_tiny("clip-llama", dtype=torch.float64).model
    scores = can.score(model, samples(3), sites=DOWN, **SHORT)
    with pytest.warns(UserWarning, match="no precision above torch.float64 to try"):
        found = against_artefacts(
            model, samples(3), scores, controls=["higher precision"], max_k=2, **SHORT
        )
    assert list(found) == ["CAN"]


@pytest.mark.full
def test_all_controls_by_default_and_none_that_are_unknown(unchecked: None):
    model = built("gate").model
    found = against_artefacts(
        model, samples(), scored("gate", sites=DOWN), max_k=3, seeds=[5], **SHORT
    )
    assert list(found) == [
        "CAN",
        "mean ablation",
        "first token left alone",
        "float64",
        "same norm, seed 5",
        "half of the samples, seed 5",
    ]
    assert (found.table()["ranked"] == 3).all()
    assert found.table()["perplexity_ratio at 1"].notna().all()
    with pytest.raises(ValueError, match="expected controls of .*, got 'max ablation'"):
        against_artefacts(
            model,
            samples(),
            scored("gate"),
            controls=["max ablation"],  # type: ignore[list-item]
        )


def test_what_is_not_finite_is_in_the_table():
    """The overflow is a collapse with zeros, and none with means or in a higher precision."""
    tiny, ranking = overflowing()
    asked = [sample for sample in samples() if sample.images]
    found = against_artefacts(
        tiny.model,
        asked,
        ranking,
        controls=["mean ablation", "higher precision"],
        collapse=[Criterion(PERPLEXITY_RATIO, at_least=10.0)],
        **SHORT,
    )
    assert {label: result.k for label, result in found.items()} == {
        "given": 2,
        "mean ablation": None,
        "float32": None,
    }
    ratios = found.table()["perplexity_ratio at 2"].tolist()
    assert ratios[0] == math.inf
    assert all(math.isfinite(ratio) for ratio in ratios[1:])
    assert "given: the perplexity is not finite" in " ".join(found.notes)

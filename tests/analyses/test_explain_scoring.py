"""Scores are correlations, never NaN, and stand beside those of other neurons' explanations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from tests.analyses.test_concepts import image_view
from tests.analyses.test_exemplars import text_view
from vlm_lens import Neuron
from vlm_lens.analyses.chat import ReplyError
from vlm_lens.analyses.exemplars import Exemplar, Exemplars, SampleView
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.measures import pearson, spearman
from vlm_lens.analyses.explaining.scoring import (
    Score,
    better_than_chance,
    other_neurons,
    p_of_mean,
    p_values,
    score,
    shuffled_scores,
    simulated,
)
from vlm_lens.results.packing import built, packed

NEURON = Neuron("blocks.1.mlp.hook_act", 0)


def held_out(rng: np.random.Generator, *, n_top: int = 2, n_random: int = 2) -> Exemplars:
    """Texts of ten words and images of 64 patches with activations at random."""

    def one(view: SampleView) -> Exemplar:
        return Exemplar(view, rng.uniform(0, 10, len(view)))

    views = [text_view(*"abcdefghij") if i % 2 else image_view() for i in range(n_top + n_random)]
    return Exemplars(
        NEURON, tuple(map(one, views[:n_top])), tuple(map(one, views[n_top:])), maximum=1.0
    )


def by(predict: Any) -> Any:
    return lambda explanation, view: predict(explanation, view)


def test_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for n in (2, 3, 50):
        x = rng.normal(size=n)
        y = x + rng.normal(size=n)
        ties = np.round(x)
        assert pearson(x, y) == pytest.approx(pearsonr(x, y).statistic)
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
        if np.ptp(ties):
            assert spearman(ties, y) == pytest.approx(spearmanr(ties, y).statistic)


@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1], [2]), ([1, 1], [1, 2]), ([1, 2], [3, 3]), ([1e9, 1e9], [0, 1])]
)
def test_what_is_constant_has_no_correlation(x: list, y: list):
    for measure in (pearson, spearman):
        assert measure(np.array(x, dtype=float), np.array(y, dtype=float)) is None


def test_a_score_is_the_correlation_over_all_positions():
    rng = np.random.default_rng(1)
    some = held_out(rng)
    noise = {one.view: rng.normal(size=len(one.view)) for one in some.every}
    truth = {one.view: one.values for one in some.every}
    tested = simulated(some, Explanation("x"), by(lambda _, v: truth[v] + 3 * noise[v]))
    found = score(tested)
    predicted = np.concatenate([one.predicted for one in tested.every])
    is_image = some.is_kind("image")
    last_two = np.arange(len(predicted)) >= sum(len(one.view) for one in some.top)
    for name, chosen in {"image": is_image, "text": ~is_image, "random": last_two}.items():
        expected = pearsonr(predicted[chosen], some.values[chosen]).statistic
        assert getattr(found, name) == pytest.approx(expected)
    assert found.pearson == pytest.approx(pearsonr(predicted, some.values).statistic)
    assert found.spearman == pytest.approx(spearmanr(predicted, some.values).statistic)
    assert found.positions == len(predicted) == 148
    assert found.notes == ()
    assert built(Score, packed(found, "", {}), {}) == found


def test_the_scale_of_a_prediction_makes_no_difference():
    some = held_out(np.random.default_rng(2))
    truth = {one.view: one.values for one in some.every}
    tested = simulated(some, Explanation("x"), by(lambda _, v: truth[v] * 0.01 - 7))
    assert score(tested).pearson == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_constant_prediction_scores_0_and_says_so(value: float):
    some = held_out(np.random.default_rng(3))
    found = score(simulated(some, Explanation("x"), by(lambda _, v: np.full(len(v), value))))
    assert (found.pearson, found.spearman, found.image, found.text) == (0, 0, 0, 0)
    assert found.notes == ("the prediction is the same everywhere, so the score is 0",)


def test_a_neuron_that_is_silent_when_tested_scores_0_and_says_so():
    view = text_view(*"abc")
    some = Exemplars(NEURON, (), (Exemplar(view, np.zeros(3)),), 1.0)
    found = score(simulated(some, Explanation("x"), by(lambda _, v: np.arange(3.0))))
    assert found.pearson == 0.0
    assert found.notes == ("the activation is the same everywhere, so the score is 0",)


def test_what_is_not_predicted_does_not_count():
    some = held_out(np.random.default_rng(4))
    truth = {one.view: one.values for one in some.every}
    tested = simulated(
        some,
        Explanation("x"),
        by(lambda _, v: np.where(v.is_kind("image"), truth[v], np.nan)),
    )
    found = score(tested)
    assert found.pearson == pytest.approx(1.0)
    assert found.text is None
    assert found.positions == 128
    found = score(simulated(some, Explanation("x"), by(lambda _, v: np.full(len(v), np.nan))))
    assert found.pearson == 0.0
    assert found.notes == ("nothing was predicted, so the score is 0",)


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((1, 1)), np.array([np.inf] * 10)])
def test_a_simulator_that_returns_something_else_is_refused(wrong: np.ndarray):
    some = Exemplars(NEURON, (Exemplar(text_view(*"abcdefghij"), np.zeros(10)),), (), 1.0)
    with pytest.raises(ValueError, match="expected the simulator to return 10 finite numbers"):
        simulated(some, Explanation("x"), by(lambda _, v: wrong))


# Chance -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "times"), [(1, 5), (2, 5), (7, 3), (7, 100), (50, 20)])
def test_each_neuron_meets_others_and_none_twice(n: int, times: int):
    others = other_neurons(n, times=times, seed=3)
    assert others.shape == (min(times, n - 1), n)
    for row in others:
        assert sorted(row) == list(range(n))  # each explanation is handed out once
    for neuron, column in enumerate(others.T):
        assert neuron not in column
        assert len(set(column)) == len(column)
    np.testing.assert_array_equal(others, other_neurons(n, times=times, seed=3))


def test_shuffled_scores_are_those_of_a_slow_loop():
    rng = np.random.default_rng(5)
    some = [held_out(rng) for _ in range(4)]
    said = [Explanation(str(i)) for i in range(4)]
    views = {one.view: i for i, exemplars in enumerate(some) for one in exemplars.every}

    def predict(explanation: Explanation, view: SampleView) -> np.ndarray:
        return np.random.default_rng([int(explanation.text), views[view]]).normal(size=len(view))

    others = other_neurons(4, times=3, seed=0)
    found = shuffled_scores(some, said, predict, others)
    for row in range(3):
        for i in range(4):
            other = said[others[row, i]]
            predicted = np.concatenate([predict(other, one.view) for one in some[i].every])
            assert found[row, i] == pytest.approx(pearsonr(predicted, some[i].values).statistic)


def test_p_values_count_others_that_are_as_good():
    rng = np.random.default_rng(6)
    own, shuffled = rng.normal(size=5), rng.normal(size=(9, 5))
    shuffled[2, 3] = np.nan
    for i, p in enumerate(p_values(own, shuffled)):
        known = [x for x in shuffled[:, i] if np.isfinite(x)]
        assert p == pytest.approx((1 + sum(x >= own[i] for x in known)) / (1 + len(known)))
    assert p_values(own, np.zeros((0, 5))).tolist() == [1.0] * 5
    assert p_of_mean(own, np.zeros((0, 5))) == 1.0


def test_the_p_value_of_the_mean_is_that_of_a_slow_loop():
    rng = np.random.default_rng(7)
    own, shuffled = rng.normal(size=6), rng.normal(size=(40, 6))
    beaten = sum(np.mean(row) >= np.mean(own) for row in shuffled)
    assert p_of_mean(own, shuffled) == pytest.approx((1 + beaten) / 41)


def test_better_than_chance_follows_benjamini_and_hochberg():
    p = np.array([0.001, 0.02, 0.03, 0.2, 0.9])
    ranked = np.sort(p)
    passing = [k for k in range(1, 6) if ranked[k - 1] <= 0.05 * k / 5]
    assert better_than_chance(p, alpha=0.05).tolist() == (p <= ranked[max(passing) - 1]).tolist()
    assert better_than_chance(np.zeros(0), alpha=0.05).shape == (0,)


@pytest.mark.full
def test_random_explanations_are_seldom_better_than_chance():
    """The control: neither explanation nor neuron knows of the other."""
    rng = np.random.default_rng(8)
    some = [held_out(rng) for _ in range(60)]
    said = [Explanation(str(i)) for i in range(60)]

    def predict(explanation: Explanation, view: SampleView) -> np.ndarray:
        return np.random.default_rng(int(explanation.text)).normal(size=64)[: len(view)]

    own = np.array(
        [score(simulated(one, text, predict)).pearson for one, text in zip(some, said, strict=True)]
    )
    shuffled = shuffled_scores(some, said, predict, other_neurons(60, times=30, seed=0))
    assert abs(shuffled.mean()) < 0.02
    assert abs(own.mean()) < 0.05
    assert better_than_chance(p_values(own, shuffled), alpha=0.05).mean() <= 0.05
    assert p_of_mean(own, shuffled) > 0.01


def test_a_reply_that_cannot_be_used_leaves_a_gap():
    rng = np.random.default_rng(9)
    some = [held_out(rng) for _ in range(3)]
    said = [Explanation(str(i)) for i in range(3)]

    def predict(explanation: Explanation, view: SampleView) -> np.ndarray:
        if explanation.text == "1":
            raise ReplyError("no")
        return np.arange(len(view), dtype=float)

    others = other_neurons(3, times=2, seed=0)
    found = shuffled_scores(some, said, predict, others)
    np.testing.assert_array_equal(np.isnan(found), others == 1)

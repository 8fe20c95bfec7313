"""The search for a collapse against masking one more neuron at a time, by plain PyTorch hooks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analyses.collapse_cases import (
    CASES,
    EXPECTED,
    MONOTONE,
    PLANTS,
    SAMPLES,
    TOKENS,
    Case,
    batches,
    found_in,
    naive,
    naive_k,
    others,
    planted,
    ranked,
    slow_answers,
)
from tests.conftest import assert_no_hooks
from vlm_lens.analyses import collapse, pcicn
from vlm_lens.analyses.collapse import find_collapse, find_critical
from vlm_lens.analyses.collapse_search import Meter, SearchOptions
from vlm_lens.masking import ACCURACY, AGREEMENT, PERPLEXITY, Criterion, similarity
from vlm_lens.masking.measurement import Measurement
from vlm_lens.report.words import sentences


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    for plant in PLANTS:
        assert_no_hooks(planted(plant).model)


@pytest.mark.sampled
@pytest.mark.parametrize("name", CASES)
def test_the_planted_neurons_are_where_the_slow_way_finds_them(name: str):
    assert naive_k(CASES[name]) == EXPECTED[name]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in MONOTONE),
        *((name, {"exhaustive": True}) for name in MONOTONE),
        *((name, {"batch_size": 1}) for name in ("gate, late", "group")),
        *((name, {"batch_size": 3, "probes": 0}) for name in ("gate, late", "spike, channel")),
        *((name, {"width": 3, "rows": 8}) for name in ("group among others", "spike, unit")),
        *((name, {"reuse": False, "rows": 1, "width": 2}) for name in ("gate, late", "group")),
    ],
    ids=str,
)
def test_finds_the_k_of_masking_one_more_at_a_time(name: str, options: dict[str, Any]):
    case = CASES[name]
    found = found_in(case, **options)
    assert found.k == naive_k(case)
    slow = naive(case, len(case.ranking))
    for measured in found.curve[: len(slow)]:
        if measured.k < len(slow):
            expected = slow[measured.k]["perplexity"]
            assert measured.metrics["perplexity"] == pytest.approx(expected, rel=1e-5)
            ratio = expected / slow[0]["perplexity"]
            assert measured.metrics["perplexity_ratio"] == pytest.approx(ratio, rel=1e-5)
    assert found.is_monotone
    assert found.ranking == case.neurons
    assert list(found.neurons) == list(case.ranking[: found.k or 0])
    assert found.stages.collapse == found.k
    assert [note for note in found.notes if "plain" in note] == []


def test_a_collapse_is_shown_with_what_was_asked_and_answered():
    case = CASES["gate, late"]
    found = found_in(case)
    slow = slow_answers("gate")
    assert found.prompts == tuple(sample.text for sample in SAMPLES)
    assert found.references == tuple(sample.answer for sample in SAMPLES)
    at = {measured.k: measured for measured in found.curve}
    assert at[0].answers == tuple(slow.text(sample) for sample in SAMPLES)
    assert at[21].answers == tuple(slow.text(sample, case.ranking[:21]) for sample in SAMPLES)
    assert at[20].collapsed is False
    assert at[21].collapsed is True
    assert {19, 20, 21, 22, 23} <= set(at), "the neighbours are measured"
    assert found.notes == ()


def test_no_collapse_is_said_so():
    found = found_in(CASES["no planted neuron"])
    assert (found.k, found.stages.collapse) == (None, None)
    assert len(found.neurons) == 0
    assert found.notes == ("no collapse within 45 neurons",)
    assert "no collapse within 45 neurons" in repr(found)
    assert found.is_monotone
    assert found.curve[-1].k == 45


def test_a_random_ranking_takes_far_more_neurons_than_the_planted_one():
    control = ranked(*others(120, seed=5))
    options = SearchOptions(max_new_tokens=TOKENS)
    model = planted("gate").model
    found = find_collapse(model, batches("gate"), control, method="random", options=options)
    assert found.k is None or found.k > 50


# Stages -------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("exhaustive", [True, False])
def test_degradation_begins_where_the_first_answers_change(exhaustive: bool):
    """In a group of units each answer has its own point from which it changes."""
    case = CASES["group"]
    found = found_in(case, exhaustive=exhaustive)
    slow = slow_answers("group")
    clean = [slow.answer(sample) for sample in SAMPLES]
    expected = next(
        k
        for k in range(1, 41)
        if [slow.answer(sample, case.ranking[:k]) for sample in SAMPLES] != clean
    )
    assert found.stages.onset == expected
    assert found.k is not None
    assert expected <= found.k
    at = {measured.k: measured for measured in found.curve}
    assert at[expected].answers == tuple(
        slow.text(sample, case.ranking[:expected]) for sample in SAMPLES
    )
    assert "agreement <= 0.95" in found.stages.rule


@pytest.mark.full
def test_degradation_can_be_judged_by_a_metric_that_is_measured_everywhere():
    case = CASES["group"]
    degraded = Criterion(PERPLEXITY, at_least=3.0)
    curve = naive(case, 40)
    expected = next(k for k, m in enumerate(curve) if m["perplexity"] >= 3)
    assert found_in(case, degraded=degraded).stages.onset == expected
    words = similarity()
    found = found_in(case, degraded=Criterion(words, at_most=0.9), metrics=[words, ACCURACY])
    assert all({"similarity", "accuracy"} <= set(m.metrics) for m in found.curve)
    with pytest.raises(ValueError, match="'similarity', which is not measured at every k"):
        SearchOptions(degraded=Criterion(words, at_most=0.9))


@pytest.mark.sampled
@pytest.mark.parametrize("wrong", [1, 4])
@pytest.mark.parametrize("method", ["can", "pcicn"])
def test_answers_that_are_wrong_with_nothing_masked_degrade_at_no_k(method: str, wrong: int):
    case, model = CASES["gate, late"], planted("gate").model
    [batch] = batches("gate")
    answers = [answer if i >= wrong else "blue" for i, answer in enumerate(batch.answers)]
    given = [replace(s, answer=a) for s, a in zip(SAMPLES, answers, strict=True)]
    options: dict[str, Any] = {"target": "answer", "max_new_tokens": TOKENS}
    if method == "pcicn":
        options |= pcicn._criteria(1.0)
    found = find_critical(model, given, case.neurons, **options)
    share = 1 - wrong / 4
    assert found.curve[0].metrics["agreement"] == share
    [said] = [note for note in found.notes if "of the answers of the data" in note]
    assert f"with nothing masked the model gives {share:.4g} of the answers" in said
    is_degraded = method == "can"  # PCICN's measure of degradation is a ratio
    assert found.stages.degraded_before == is_degraded
    assert any("counts as degraded" in note for note in found.notes) == is_degraded
    told = " ".join(sentences(found))
    assert f"of the answers of the data, with nothing masked {share:.0%}" in told
    assert "answers are left" not in told
    if is_degraded:
        assert found.stages.onset is None
        assert "Degradation begins" not in told
        assert "count as degraded with nothing masked: no k is where that begins" in told
        assert "degraded before anything is masked" in repr(found)


def test_a_negative_k_is_refused():
    with pytest.raises(ValueError, match="also_at of numbers of at least 0, got -3"):
        SearchOptions(also_at=(5, -3))


# Curves that are not monotone ---------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dent at 16", {}),  # galloping falls into it, and looks behind what it found
        ("dent at 16", {"exhaustive": True}),
        ("dent at 20 to 22", {}),  # a probe falls into it
        ("dent at 20 to 22", {"probes": 31}),
        ("dent at 20 to 22", {"probes": 0, "also_at": [21]}),
    ],
)
def test_a_curve_that_is_not_monotone_is_noticed(name: str, options: dict[str, Any]):
    case = CASES[name]
    found = found_in(case, **options)
    assert found.k == EXPECTED[name] == naive_k(case)
    assert not found.is_monotone
    assert "not monotone" in repr(found)
    collapsed = {m.k: m.collapsed for m in found.curve}
    assert found.k is not None
    assert collapsed[found.k - 1] is False
    back = [k for k, value in collapsed.items() if k > found.k and not value]
    [note] = [note for note in found.notes if "not monotone" in note]
    assert f"k = {found.k} is the smallest found, but k = {', '.join(map(str, back))}" in note
    assert back


def test_an_exhaustive_search_finds_the_smallest_where_another_may_not():
    case = CASES["dent at 20 to 22"]
    changed = Criterion(AGREEMENT, at_most=0.0)
    missed = found_in(case, probes=0, degraded=changed)
    assert (missed.k, missed.is_monotone) == (33, True)
    found = found_in(case, exhaustive=True, degraded=changed)
    assert found.k == 20
    assert [m.k for m in found.curve] == list(range(23))


class FakeMeter(Meter):
    """Measurements from a list: at each k, whether it collapses and whether it degrades."""

    curve: Sequence[tuple[bool, bool]] = ()

    def __init__(self, *_args: Any, **_options: Any) -> None:
        self.device = torch.device("cpu")

    def run(self, ks: Sequence[int]) -> list[Any]:
        return [Measurement(k, {}) for k in ks]

    def judged(self, run: Any) -> Measurement:
        collapsed, degraded = (False, False) if run.k == 0 else self.curve[run.k - 1]
        metrics = {"perplexity": 1.0, "agreement": 0.0 if degraded else 1.0}
        return Measurement(run.k, metrics, collapsed)

    def with_answers(self, known: Measurement) -> Measurement:
        return known


@settings(max_examples=60, deadline=None)
@given(
    curve=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40),
    width=st.integers(1, 4),
    probes=st.integers(0, 5),
    also_at=st.lists(st.integers(1, 40), max_size=3),
)
def test_no_measurement_contradicts_the_result_on_any_curve(curve, width, probes, also_at):
    case = CASES["no planted neuron"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collapse, "Meter", FakeMeter)
        patch.setattr(FakeMeter, "curve", curve)
        found = found_in(case, max_k=len(curve), width=width, probes=probes, also_at=also_at)
    measured = {m.k: m for m in found.curve}
    assert set(measured) >= {0, *(min(k, len(curve)) for k in also_at)}
    collapsed = [k for k, m in measured.items() if m.collapsed]
    assert found.k == min(collapsed, default=None)
    if found.k is not None and found.k > 1:
        assert not measured[found.k - 1].collapsed
    k = math.inf if found.k is None else found.k
    assert found.is_monotone == all(m.collapsed == (m.k >= k) for m in found.curve)
    assert any("not monotone" in note for note in found.notes) == (not found.is_monotone)
    onset = found.stages.onset
    if onset is not None:
        assert onset <= k
        assert curve[onset - 1][1]
    degraded = [m for m in measured if 0 < m <= k and measured[m].metrics["agreement"] < 1]
    assert onset == min(degraded, default=None)


# Refused, and from samples to the result ----------------------------------------------------------


@pytest.mark.parametrize("max_k", [0, -1, 27])
def test_max_k_is_within_the_ranking(max_k: int):
    with pytest.raises(ValueError, match=f"expected max_k of 1 to 26, .* got {max_k}"):
        found_in(CASES["gate, first"], max_k=max_k)


def test_an_empty_ranking_is_refused():
    with pytest.raises(ValueError, match="max_k"):
        found_in(Case("gate", ()))


@pytest.mark.parametrize(
    ("options", "error"), [({"max_k": 0}, ValueError), ({"pace": 3}, TypeError)], ids=str
)
def test_find_critical_refuses_bad_options_before_it_asks_anything(options, error):
    def fail(*_args: Any, **_options: Any) -> None:
        raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collapse, "make_batches", fail)
        with pytest.raises(error):
            find_critical(planted("gate").model, SAMPLES, CASES["gate, first"].neurons, **options)


@pytest.mark.full
def test_find_critical_makes_the_batches_itself():
    case = CASES["gate, late"]
    for batch_size in (1, 3, 16):
        found = find_critical(
            planted("gate").model,
            SAMPLES,
            case.neurons,
            batch_size=batch_size,
            max_new_tokens=TOKENS,
        )
        assert found.k == naive_k(case)

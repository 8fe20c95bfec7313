"""The benchmark's pieces run on a small model, and its tables render; nothing is timed here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import overhead
from benchmarks.models import SIZES, Subject, available, build, llava_config
from benchmarks.overhead import BRIDGE, CONTENDERS, HF, NNSIGHT, TASKS, VLM_LENS, Contender

N_NEW = 3
pytestmark = pytest.mark.filterwarnings("ignore:run_with_cache. skipped")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return build("small")


@pytest.fixture(scope="module")
def contenders(subject: Subject) -> dict[str, Contender]:
    return overhead.build_contenders(subject, n_new=N_NEW)


@pytest.fixture(scope="module")
def results(subject: Subject, contenders: dict[str, Contender]) -> dict[str, Any]:
    """Results as `main` writes them, of times that are made up: contender i takes i seconds."""
    times = {
        task: {
            name: [1.0 + i] * 3
            for i, name in enumerate(CONTENDERS)
            if task in contenders[name].runs
        }
        for task in TASKS
    }
    model = {
        "parameters": subject.n_parameters,
        "positions": 48,
        "tasks": overhead.summarise(times, contenders),
        "logits_differ_by": {HF: {"forward": 0.0}, VLM_LENS: {"forward": 0.0}, BRIDGE: {}}
        | {NNSIGHT: {"forward": 2e-6}},
        "microseconds_per_hook_point": overhead.hook_cost(times, subject),
    }
    around = {"rounds": 3, "clock": "cpu", "threads": 1, "cpu": "a processor"}
    return {**around, "date": "2026-01-01", "versions": {"torch": "2"}, "models": {"small": model}}


def test_models_have_the_sizes_that_they_are_named_for(subject: Subject):
    assert {"small", "39m"} <= set(available())
    assert subject.inputs["input_ids"].shape[1] == 16 + 32
    with torch.device("meta"):
        model = type(subject.hf_model)(llava_config(SIZES["39m"]))
    assert 38e6 < sum(parameter.numel() for parameter in model.parameters()) < 40e6


def test_inputs_are_the_same_every_time(subject: Subject):
    again = build("small").inputs
    assert all(torch.equal(value, again[name]) for name, value in subject.inputs.items())


def test_every_contender_does_every_task_or_says_why_not(contenders: dict[str, Contender]):
    for contender in contenders.values():
        assert contender.runs.keys() | contender.cannot.keys() == TASKS.keys()
        assert not contender.runs.keys() & contender.cannot.keys()


def test_reading_changes_no_bit_and_peers_compute_the_same(contenders: dict[str, Contender]):
    difference = overhead.check(contenders)
    assert set(difference[VLM_LENS].values()) == {0.0}
    assert max(difference[BRIDGE].values()) < 1e-4


def test_all_contenders_ablate_the_same_neurons(contenders: dict[str, Contender]):
    agree = overhead.same_tokens(contenders)
    assert VLM_LENS in agree
    assert all(agree.values())


def test_generation_makes_exactly_as_many_tokens_as_asked(
    subject: Subject, contenders: dict[str, Contender]
):
    n_prompt = subject.inputs["input_ids"].shape[1]
    for contender in contenders.values():
        if "generate" in contender.runs:
            assert contender.runs["generate"]()[0].shape == (1, n_prompt + N_NEW)


def test_measure_runs_everything_in_every_round():
    calls: list[str] = []
    contender = Contender({"forward": lambda: calls.append("forward")})
    times = overhead.measure({HF: contender}, rounds=4, clock="wall")
    assert len(calls) == 4 + overhead.WARM_UPS
    assert len(times["forward"][HF]) == 4


def test_ratios_are_to_hugging_face_in_the_same_round():
    times = {"forward": {HF: [1.0, 2.0, 4.0], VLM_LENS: [2.0, 4.0, 8.0]}}
    cell = overhead._summary(times, "forward", VLM_LENS)
    assert cell == {"ms": 4000.0, "ratio": 2.0, "quartiles": [2.0, 2.0]}


def test_report_says_whether_a_target_is_met(results: dict[str, Any]):
    text = overhead.report(results)
    assert "at most 1.02x: NO" in text
    assert "bit-identical to Hugging Face, idle and read: yes" in text
    assert [overhead.met("forward", ratio) for ratio in (1.02, 1.03)] == ["yes", "NO"]


def test_readme_table_has_a_row_for_each_task(results: dict[str, Any]):
    table = overhead.readme_table(results)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(TASKS) + 1
    assert len({row.count("|") for row in rows}) == 1
    assert "| 1000.0 ms | 2.00x |" in rows[2]
    assert "a processor, 2026-01-01; torch 2." in table


def test_nnsight_is_left_out_where_it_is_not_installed(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(overhead, "installed", lambda _: False)
    contender = overhead.nnsight(subject, n_new=N_NEW)
    assert not contender.runs
    assert contender.cannot.keys() == TASKS.keys()

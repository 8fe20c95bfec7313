"""The naive loop and our search find the same; nothing is timed here."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import critical, critical_score, critical_search
from benchmarks.critical_models import Case, planted, shapes_llava
from benchmarks.critical_naive import Naive
from benchmarks.critical_report import MARKS, missed, readme_table, report
from benchmarks.critical_score import BARE, JOBS, SCORE, build_jobs, forward_and_backward
from benchmarks.critical_search import (
    EXHAUSTIVE,
    PLAIN,
    VARIANTS,
    Loop,
    Stopwatch,
    compare,
    compare_bridge,
    search,
)
from benchmarks.surroundings import surroundings
from vlm_lens.masking import (
    AGREEMENT,
    PERPLEXITY_RATIO,
    MaskedRun,
    MaskedRuns,
    similarity,
)
from vlm_lens.passes.forwards import losses

N_PLANTED = 28
STORED = Path(critical.__file__).with_name("critical.json")
README = Path(__file__).parents[1] / "README.md"
pytestmark = pytest.mark.filterwarnings("ignore:run_with_cache. skipped")


@pytest.fixture(scope="module")
def case() -> Case:
    return planted("small", n_planted=N_PLANTED, blocks=range(4), n_samples=2, max_k=40)


@pytest.fixture(scope="module")
def compared(case: Case) -> dict[str, Any]:
    return compare(case, rounds=1, clock="cpu")


@pytest.fixture(scope="module")
def results(case: Case, compared: dict[str, Any]) -> dict[str, Any]:
    """Results as `main` writes them."""
    scored = critical_score.measure_score("small", n_samples=2, rounds=2, clock="cpu")
    return {
        **surroundings(),
        "clock": "cpu",
        "searches": {"small": compared},
        "bridges": {"small": compare_bridge(case, rounds=1, clock="cpu")},
        "scores": {"small": scored},
    }


# The plant --------------------------------------------------------------------------------------


def test_planted_gates_come_first(case: Case):
    per_block = N_PLANTED // 4
    assert all(neuron.index < per_block for neuron in case.ranking[: N_PLANTED // 2])
    assert {neuron.name for neuron in case.ranking[:N_PLANTED]} == {
        f"blocks.{block}.mlp.hook_pre" for block in range(4)
    }


def test_perplexity_rises_with_every_planted_gate_in_whatever_order(case: Case):
    order = torch.randperm(N_PLANTED // 2, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = copy.copy(case)
    neurons = list(case.ranking)
    object.__setattr__(
        shuffled,
        "ranking",
        type(case.ranking)([neurons[i] for i in order], sizes=case.ranking.sizes),
    )
    for some in (case, shuffled):
        naive = Naive(some)
        with naive.hooked():
            ratios = [naive.measure(k).ratio for k in range(N_PLANTED // 2)]
        assert ratios[0] == 1.0
        assert ratios == sorted(set(ratios))


def test_samples_and_weights_are_the_same_every_time(case: Case):
    again = planted("small", n_planted=N_PLANTED, blocks=range(4), n_samples=2, max_k=40)
    assert list(again.ranking) == list(case.ranking)
    assert [batch.answers for batch in again.batches] == [batch.answers for batch in case.batches]


# The searches -----------------------------------------------------------------------------------


@pytest.mark.full
def test_the_naive_loop_and_every_variant_of_ours_find_the_same(compared: dict[str, Any]):
    naive, ours = compared["naive"], compared["ours"]
    assert ours.keys() == {*VARIANTS, EXHAUSTIVE}
    assert 10 < naive["k"] < N_PLANTED
    assert {entry["k"] for entry in ours.values()} == {naive["k"]}
    assert {entry["onset"] for entry in ours.values()} == {naive["onset"]}
    assert naive["measurements"] == naive["k"]
    assert naive["rises_at_every_k"]
    assert ours[EXHAUSTIVE]["measurements"] > naive["k"]


@pytest.mark.full
def test_the_naive_loop_measures_what_we_measure():
    case = shapes_llava(n_samples=6, component=None, max_k=1200)
    naive, runs = Naive(case), MaskedRuns(case.model, case.batches, case.ranking)
    clean = MaskedRun(runs, 0, runs.losses([0])[0])
    for k in (1, 40, 3, 300, 1200):
        with naive.hooked():
            found = naive.measure(k)
        run = MaskedRun(runs, k, runs.losses([k])[0], clean)
        assert found.ratio == pytest.approx(PERPLEXITY_RATIO.of(run), rel=1e-3)
        assert found.agreement == pytest.approx(AGREEMENT.of(run))
        if found.ratio >= 10:
            assert found.similarity == pytest.approx(similarity().of(run))
    assert found.similarity is not None


@pytest.mark.full
def test_no_hook_of_the_naive_loop_stays(case: Case):
    def n_hooks() -> int:
        return sum(len(module._forward_hooks) for module in case.model.hf_model.modules())

    loop, before = Loop(case, Stopwatch("cpu")), n_hooks()
    loop.run(until=3)
    assert len(loop.curve) == 3
    assert n_hooks() == before


@pytest.mark.full
def test_the_loop_goes_on_where_it_was_and_ends_at_collapse(case: Case):
    loop = Loop(case, Stopwatch("cpu"))
    for until in (10, 20, len(case.ranking)):
        loop.run(until=until)
    assert [found.k for found in loop.curve] == list(range(1, loop.curve[-1].k + 1))
    assert [found.collapsed for found in loop.curve].count(True) == 1


@pytest.mark.full
def test_a_quick_loop_says_that_it_is_extrapolated_and_looks_only_at_our_k(case: Case):
    k = search(case).k
    loop = Loop(case, Stopwatch("cpu"), every=7)
    loop.run(until=len(case.ranking))
    assert [found.k % 7 for found in loop.curve] == [0] * len(loop.curve)
    result = loop.result(k)
    assert result["extrapolated"]
    assert result["k"] == k
    for wrong in (k - 1, k + 1, None):
        assert loop.result(wrong)["k"] is None


@pytest.mark.full
def test_the_same_search_over_transformer_bridge(results: dict[str, Any]):
    over = results["bridges"]["small"]["over"]
    without_generation = results["searches"]["small"]["naive"]["k_without_generation"]
    assert {entry["k"] for entry in over.values()} == {without_generation}
    assert without_generation is not None


# The score --------------------------------------------------------------------------------------


def test_the_bare_pass_has_the_loss_that_is_scored_and_leaves_no_trace(case: Case):
    [batch] = case.batches
    loss = forward_and_backward(case.model.hf_model, batch)
    assert loss == pytest.approx(float(losses(case.model, batch).detach().sum()), rel=1e-5)
    for parameter in case.model.hf_model.parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
    assert batch.arguments["pixel_values"].grad is None
    assert not case.model.hf_model.get_input_embeddings()._forward_hooks


def test_jobs_score_every_hook_point(case: Case):
    [batch] = case.batches
    jobs = build_jobs(case.model, batch.samples, 4)
    assert jobs.keys() == JOBS.keys()
    scored, whole = jobs[SCORE](), jobs["whole"]()
    assert [name for _, name in scored] == list(whole)
    for (_, name), state in scored.items():
        torch.testing.assert_close((state["sum"] / 2).float(), whole[name])


# The tables -------------------------------------------------------------------------------------


def _rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("show", [report, readme_table])
def test_tables_have_a_cell_in_every_column(show: Callable[..., str], results: dict[str, Any]):
    text = show(results)
    for table in text.split("\n\n"):
        assert len({row.count("|") for row in _rows(table)}) <= 1
    assert "1 thread" in text or "threads" in text
    assert "their perplexity rises with every k." in text
    assert "torch " in text


def test_the_report_has_a_row_for_everything(results: dict[str, Any]):
    n_search = 2 + 1 + len(VARIANTS) + 1
    n_score = 2 + len(JOBS) + (results["scores"]["small"]["jobs"][BARE]["peak_mib"] is not None)
    assert len(_rows(report(results))) == n_search + (2 + 2) + n_score


def test_times_that_were_not_measured_say_so(results: dict[str, Any]):
    results = copy.deepcopy(results)
    results["searches"]["small"]["naive"] |= {"extrapolated": True, "onset": None}
    text = report(results)
    assert text.count("about ") == 1 + len(VARIANTS) + 1
    assert "| ? |" in text
    assert "extrapolated" in text


def test_missed_goals_are_named(results: dict[str, Any]):
    good = copy.deepcopy(results)
    good["scores"]["small"]["jobs"][SCORE]["ratio"] = 1.15
    assert missed(good) == []
    bad = copy.deepcopy(good)
    bad["scores"]["small"]["jobs"][SCORE]["ratio"] = 1.16
    bad["searches"]["small"]["ours"][PLAIN]["k"] = 7
    bad["searches"]["small"]["naive"] |= {"k": 1000, "seconds": 9.0}
    bad["searches"]["small"]["ours"][PLAIN]["seconds"] = 1.0
    bad["bridges"]["small"]["over"]["HookedVLM"]["k"] = 7
    assert len(missed(bad)) == 4
    assert "another k*" in report(bad)
    assert "| 1,000 | 9 s | 1.0 s | k* = 7 |" in readme_table(bad)


def test_where_the_default_finds_another_k_a_variant_that_finds_the_same_is_shown(
    results: dict[str, Any],
):
    results = copy.deepcopy(results)
    ours = results["searches"]["small"]["ours"]
    ours[PLAIN]["k"] = 7
    ours["width=4"]["seconds"], ours["reuse=False"]["seconds"] = 1.0, 0.5
    ours["reuse=False"]["k"] = 7
    ours["probes=64"]["seconds"] = ours[EXHAUSTIVE]["seconds"] = 2.0
    rows = _rows(readme_table(results))
    assert "| k* = 7 |" in rows[2]
    assert rows[3].startswith("| small, `width=4` |")


# The script -------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("part", critical.PARTS)
def test_each_part_can_be_measured_alone(
    part: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(critical, "CASES", {"tiny": lambda: case})
    monkeypatch.setattr(critical, "BRIDGED", ("tiny",))
    monkeypatch.setattr(critical, "SCORED", {"small": 2})
    monkeypatch.setattr(critical_search, "VARIANTS", {PLAIN: {}})
    monkeypatch.setattr(critical.torch, "set_num_threads", lambda _: None)
    out = tmp_path / "out.json"
    critical.main(
        ["--only", part, "--quick", "--searches", "2", "--rounds", "2", "--out", str(out)]
    )
    written = json.loads(out.read_text())
    kinds = {"search": "searches", "bridge": "bridges", "score": "scores"}
    assert [kind for kind in kinds.values() if written[kind]] == [kinds[part]]


@pytest.mark.parametrize(
    "arguments", [["--threads", "2"], ["--rounds", "1"], ["--searches", "0"], ["--case", "none"]]
)
def test_what_cannot_be_measured_is_refused(arguments: list[str]):
    with pytest.raises(SystemExit):
        critical.parse(arguments)


# What is stored ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads(STORED.read_text())


def test_everything_was_measured_to_the_end(stored: dict[str, Any]):
    assert stored["searches"].keys() == critical.CASES.keys()
    assert stored["bridges"].keys() == set(critical.BRIDGED)
    assert stored["scores"].keys() == critical.SCORED.keys()
    assert stored["threads"] == 1
    for found in stored["searches"].values():
        assert not found["naive"]["extrapolated"]
        assert found["naive"]["measurements"] == found["naive"]["k"]
        assert found["ours"][EXHAUSTIVE]["k"] == found["naive"]["k"]


def test_planted_neurons_are_found_ten_times_as_fast(stored: dict[str, Any]):
    for name in ("39m, all blocks", "39m, last two blocks"):
        found = stored["searches"][name]
        assert 900 <= found["naive"]["k"] <= 1100
        assert found["naive"]["rises_at_every_k"]
        assert {entry["k"] for entry in found["ours"].values()} == {found["naive"]["k"]}
        assert found["naive"]["seconds"] >= 10 * found["ours"][PLAIN]["seconds"]


def test_the_same_search_over_both_hooks_found_the_same(stored: dict[str, Any]):
    for bridge in stored["bridges"].values():
        assert len({entry["k"] for entry in bridge["over"].values()}) == 1


def test_the_readme_shows_what_was_last_measured(stored: dict[str, Any]):
    begin, end = MARKS
    assert README.read_text().split(begin)[1].split(end)[0].strip() == readme_table(stored).strip()

"""The benchmark's pieces run on a small model, and its tables render; nothing is timed here."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import contenders as contenders_module
from benchmarks import families, overhead
from benchmarks.checks import check, same_tokens
from benchmarks.contenders import (
    BRIDGE,
    CONTENDERS,
    HF,
    NNSIGHT,
    VLM_LENS,
    Contender,
    build_contenders,
    nnsight_if_installed,
)
from benchmarks.measure import HEAPS, WARM_UPS, hook_cost, measure, summarise, summary
from benchmarks.models import SIZES, Subject, available, build, llava_config
from benchmarks.report import Results, readme_table, report
from benchmarks.surroundings import surroundings
from benchmarks.tasks import TASKS
from vlm_lens import HookedVLM
from vlm_lens.hooks.heads import PATTERN_SITES

N_NEW = 3
pytestmark = pytest.mark.filterwarnings("ignore:run_with_cache. skipped")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return build("small")


@pytest.fixture(scope="module")
def contenders(subject: Subject) -> dict[str, Contender]:
    return build_contenders(subject, n_new=N_NEW)


@pytest.fixture
def results(subject: Subject, contenders: dict[str, Contender]) -> Results:
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
        "dtype": "float32",
        "positions": 48,
        "image_tokens": 16,
        "tasks": summarise(times, contenders),
        "logits_differ_by": {HF: {"forward": 0.0}, VLM_LENS: {"forward": 0.0}, BRIDGE: {}}
        | {NNSIGHT: {"forward": 2e-6}},
        "microseconds_per_hook_point": hook_cost(times, contenders[VLM_LENS].n_kept),
    }
    around: dict[str, Any] = {"rounds": 3, "clock": "cpu", "threads": 1, "cpu": "a processor"}
    around |= {"date": "2026-01-01", "versions": {"torch": "2"}, "models": {"small": model}}
    return {"kept": around}


@pytest.fixture
def both_heaps(results: Results) -> Results:
    """The same, and a second run in which HookedVLM takes nine times as long for everything."""
    returned = copy.deepcopy(results["kept"])
    returned["models"]["small"]["tasks"]["everything"][VLM_LENS]["ratio"] = 9.0
    return {**results, "returned": returned}


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


def test_hooked_vlm_keeps_as_many_points_as_are_counted(contenders: dict[str, Contender]):
    contender = contenders[VLM_LENS]
    assert contender.n_kept.keys() == {"lm_neurons", "all_neurons", "everything"}
    for task, count in contender.n_kept.items():
        kept = [name for name in contender.runs[task]()[1] if not name.endswith(PATTERN_SITES)]
        assert len(kept) == count  # patterns are computed when they are asked for


def test_reading_changes_no_bit_and_peers_compute_the_same(contenders: dict[str, Contender]):
    difference = check(contenders)
    assert set(difference[VLM_LENS].values()) == {0.0}
    assert max(difference[BRIDGE].values()) < 1e-4


def test_all_contenders_ablate_the_same_neurons(contenders: dict[str, Contender]):
    agree = same_tokens(contenders)
    assert VLM_LENS in agree
    assert all(agree.values())


def test_generation_makes_exactly_as_many_tokens_as_asked(
    subject: Subject, contenders: dict[str, Contender]
):
    n_prompt = subject.inputs["input_ids"].shape[1]
    for contender in contenders.values():
        if "generate" in contender.runs:
            assert contender.runs["generate"]()[0].shape == (1, n_prompt + N_NEW)


def test_nnsight_is_left_out_where_it_is_not_installed(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(contenders_module, "installed", lambda _: False)
    contender = nnsight_if_installed(subject, N_NEW)
    assert not contender.runs
    assert contender.cannot.keys() == TASKS.keys()


@pytest.mark.full
def test_measure_runs_everything_in_every_round():
    class Counting(Contender):
        calls = 0

        def forward(self) -> tuple[()]:
            self.calls += 1
            return ()

    contender = Counting()
    times = measure({HF: contender}, rounds=4, clock="wall")
    assert contender.calls == 4 + WARM_UPS
    assert len(times["forward"][HF]) == 4


def test_ratios_are_to_hugging_face_in_the_same_round():
    cell = summary([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert cell == {"ms": 4000.0, "ratio": 2.0, "quartiles": [2.0, 2.0]}


def test_hook_cost_is_what_one_point_adds_to_a_plain_forward():
    times = {"forward": {HF: [1.0, 2.0]}, "everything": {VLM_LENS: [3.0, 4.0]}}
    assert hook_cost(times, {"everything": 4}) == {"everything": 500_000.0}


def test_surroundings_name_every_version():
    assert {"Python", "torch", "transformers", "transformer-lens"} <= set(
        surroundings()["versions"]
    )


def test_report_says_whether_a_target_is_met(both_heaps: Results):
    text = report(both_heaps)
    assert "at most 1.02x: NO" in text
    assert "bit-identical to Hugging Face, idle and read: yes" in text
    assert text.count("\nHeap ") == 2
    assert [TASKS["forward"].verdict(ratio) for ratio in (1.02, 1.03)] == ["yes", "NO"]


def test_readme_table_has_a_row_for_each_task(results: Results):
    table = readme_table(results)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(TASKS) + 1
    assert len({row.count("|") for row in rows}) == 1
    assert "| 1000.0 ms | 2.00x |" in rows[2]


def test_caption_says_how_it_was_measured(results: Results):
    caption = readme_table(results).splitlines()[-1]
    for said in (
        "`small`: a LLaVA of 0.4M parameters, float32, 16 of its 48 positions an image.",
        "Medians of 3 interleaved rounds, CPU time of the process, 1 thread, a processor",
        "Heap `kept`: freed memory stays with the process",
        "TransformerBridge keeps its own set of points",
        "torch 2.",
    ):
        assert said in caption
    assert "untouched" not in caption


def test_table_is_of_the_kept_heap_and_the_caption_names_the_other(both_heaps: Results):
    table, _, caption = readme_table(both_heaps).rpartition("\n")
    assert "9.00x" not in table
    assert "under untouched glibc, HookedVLM's ratio for everything is 9.00x (`small`)" in caption


@pytest.mark.parametrize("heap", [*HEAPS, "both"])
def test_json_keeps_every_heap_setting_that_was_run(
    heap: str, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        overhead, "in_own_processes", lambda heaps, _: dict.fromkeys(heaps, results["kept"])
    )
    monkeypatch.setattr(overhead.platform, "libc_ver", lambda: ("glibc", "2"))
    overhead.main(["--heap", heap, "--out", str(tmp_path / "out.json"), "--markdown"])
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == (list(HEAPS) if heap == "both" else [heap])


@pytest.mark.parametrize("arguments", [["--threads", "2"], ["--rounds", "1"]])
def test_what_cannot_be_measured_is_refused(arguments: list[str]):
    with pytest.raises(SystemExit):
        overhead.parse(arguments)


def test_keeping_the_heap_is_refused_without_glibc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(overhead.platform, "libc_ver", lambda: ("", ""))
    assert overhead.parse(["--heap", "returned"]).heap == "returned"
    with pytest.raises(SystemExit):
        overhead.parse([])


# Families ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, Any]]:
    """Two families as small as in the tests: what is measured here are not times."""
    return {
        name: families.measure_family(name, rounds=2, clock="cpu", factor=1)
        for name in ("gemma3", "blip2-t5")
    }


@pytest.mark.full
def test_a_family_has_its_ratios_and_its_logits_to_the_bit(measured: dict[str, dict[str, Any]]):
    for name, family in measured.items():
        assert list(family["tasks"]) == list(families.ROWS)
        assert family["logits_differ_by"] == dict.fromkeys(families.ROWS, 0.0), name
        assert all(row[VLM_LENS]["ratio"] > 0 for row in family["tasks"].values())
        assert "reason" in family["tasks"]["everything"][HF]
    assert measured["blip2-t5"]["class"] == "Blip2ForConditionalGeneration"


def test_the_language_models_neurons_are_those_of_encoder_and_decoder():
    kept = families.FamilyLens(families.build_family("blip2-t5", factor=1)).lm_neurons()[1]
    assert len(kept) == 6
    assert {name.partition(".")[0] for name in kept} == {"encoder", "decoder"}


@pytest.mark.parametrize("name", families.available())
def test_every_family_can_be_widened(name: str):
    small, wide = (families.build_family(name, factor=factor) for factor in (1, 2))
    model = HookedVLM(wide.hf_model)
    assert model.cfg.d_model == 64
    assert model.cfg.n_layers == HookedVLM(small.hf_model).cfg.n_layers == 3
    assert wide.n_parameters > 2.5 * small.n_parameters
    with torch.no_grad():
        assert wide.hf_model(**wide.inputs).logits.isfinite().all()


def test_the_table_of_families_has_a_row_for_each(measured: dict[str, dict[str, Any]]):
    measured = copy.deepcopy(measured)
    for name, milliseconds in {
        "gemma3": families.TINY_MS - 0.1,
        "blip2-t5": families.TINY_MS,
    }.items():
        measured[name]["tasks"]["forward"][HF]["ms"] = milliseconds
    table = families.families_table(measured)
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(measured)
    assert len({row.count("|") for row in rows}) == 1
    assert ["(tiny)" in row for row in rows[2:]] == [True, False]
    assert table.count("points)") == 2
    assert "Logits bit-identical to Hugging Face's in every cell: yes." in table
    measured["gemma3"]["logits_differ_by"]["forward"] = 1e-6
    assert "in every cell: NO." in families.families_table(measured)


def test_families_go_to_a_file_of_their_own(
    measured: dict[str, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert overhead.parse(["--families", "--heap", "returned"]).out.name == "families.json"
    assert overhead.parse(["--family", "gemma3", "--heap", "returned"]).families
    assert overhead.parse(["--heap", "returned"]).out.name == "overhead.json"
    run = {"kept": {"families": measured}}
    monkeypatch.setattr(overhead, "in_own_processes", lambda heaps, _: run)
    overhead.main(["--families", "--heap", "returned", "--out", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == run
    assert "| gemma3 |" in capsys.readouterr().out


def test_every_family_was_measured_with_equal_logits():
    """What is stored, and what the documentation shows of it."""
    stored = json.loads((Path(families.__file__).parent / "families.json").read_text())
    for run in stored.values():
        assert list(run["families"]) == families.available()
        for family in run["families"].values():
            assert not any(family["logits_differ_by"].values())

"""``vlm-lens types``: what it writes, says and refuses, and how it goes on."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.handing_out import Asked, hand_out
from tests.interrupting import Killed, interrupted
from tests.page import Page, assert_self_contained
from tests.test_cli_search import ATTACK, interrupt, refused, run, watch
from tests.tiny import Tiny, picture
from vlm_lens import load_samples
from vlm_lens.analyses import neuron_types
from vlm_lens.analyses.neuron_types_result import NeuronTypes

FEW = ("--n", 4, "--top-samples", 2, "--max-new-tokens", 4, "--answers", "given")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, llava: Tiny) -> Asked:
    """Loads the tiny model whatever is asked for, and records what that was."""
    return hand_out(monkeypatch, llava.model)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four images and descriptions."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": ATTACK, "answer": "a red circle left"})
    write(folder, lines)
    return folder


def write(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def page_in(folder: Path) -> Page:
    shown = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert_self_contained(shown)
    assert "NaN" not in shown.text
    return shown


def assert_same(one: NeuronTypes, two: NeuronTypes) -> None:
    assert list(one.sites) == list(two.sites)
    for name, site in one.sites.items():
        other = two.sites[name]
        assert torch.equal(site.counts, other.counts)
        assert torch.equal(site.maxima, other.maxima)
        assert torch.equal(site.tails, other.tails)
    assert one.tried == two.tried


# What it writes and says --------------------------------------------------------------------------


def test_does_what_the_function_does(
    loaded: list, llava: Tiny, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("types", *FEW, "--seed", 5, "--out", out) == 0
    samples = load_samples("shapes-llava", task="caption", n=4, seed=5)
    expected = neuron_types.classify(llava.model, samples, top_samples=2, answers="given")
    found = NeuronTypes.load(out)
    assert_same(found, expected)
    said, err = capsys.readouterr()
    lines = said.splitlines()
    assert lines[0].startswith("192 neurons: ")
    assert lines[-1] == str(out / "report.html")
    for row in found.table().to_dict("records"):
        [line] = [line for line in lines if line.startswith(f"{row['label']} ")]
        assert line.split()[1] == str(row["neurons"])
        assert line.split()[-2:] == [str(row["significant"]), str(row["never_active"])]
    assert all(line.startswith("[") for line in err.splitlines())
    assert loaded == [("shapes-llava", {"device": None})]


def test_the_page_is_self_contained(loaded: list, out: Path, data: Path) -> None:
    assert run("types", "--data", data, *FEW, "--out", out) == 0
    shown = page_in(out)
    assert len(shown.figures) == 2
    assert shown.count("img") == 0
    assert "All 81 rows" in shown.text
    assert f"vlm-lens types --data {data} --n 4" in shown.text
    for parameter in ("T_v", "comparison", "visual_tokens", "high_confidence", "answers"):
        assert parameter in shown.text
    assert len(loaded) == 1


@pytest.mark.full
def test_options_reach_their_places(loaded: list, llava: Tiny, out: Path) -> None:
    thresholds = ("--T-v", 1, "--n-v", 2, "--T-t", 4, "--n-t", 1)
    sites = ("--sites", "output", "--component", "language_model", "--task", "image")
    shares = ("--high-confidence", 0.5, "--alpha", 0.2, "--batch-size", 3)
    own = ("--n", 4, "--top-samples", 3, "--answers", "own", "--max-new-tokens", 3)
    assert run("types", *thresholds, *sites, *shares, *own, "--out", out) == 0
    expected = neuron_types.classify(
        llava.model,
        load_samples("shapes-llava", n=4),
        sites="output",
        T_v=1,
        n_v=2,
        T_t=4,
        n_t=1,
        top_samples=3,
        max_new_tokens=3,
        high_confidence=0.5,
        alpha=0.2,
        batch_size=3,
    )
    found = NeuronTypes.load(out)
    assert_same(found, expected)
    assert found.parameters["alpha"] == 0.2
    assert found.parameters["high_confidence"] == 0.5
    shown = page_in(out)
    assert "p ≤ 0.2" in shown.text
    assert "share above 0.5" in shown.text
    assert len(loaded) == 1


# Samples ------------------------------------------------------------------------------------------


def test_samples_that_cannot_count_are_left_out_with_a_reason(
    loaded: list, out: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = lines_of(data)
    lines[1]["answer"] = ""
    lines[2]["text"] = "<image> <image> two ?"
    write(data, lines)
    assert run("types", "--data", data, *FEW, "--out", out) == 0
    said, err = capsys.readouterr()
    notes = [line for line in said.splitlines() if line.startswith("Note: ")]
    assert len(notes) == 2
    assert all("1 sample left out: " in note for note in notes)
    assert "answer" in said
    assert all(line.startswith("[") for line in err.splitlines())
    assert notes[0].removeprefix("Note: ") in page_in(out).text
    assert NeuronTypes.load(out).parameters["n_samples"] == 2
    assert len(loaded) == 1


def test_samples_without_an_image_are_left_out(
    loaded: list,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mixed = [
        *load_samples("shapes-llava", task="text", n=2),
        *load_samples("shapes-llava", task="caption", n=3),
    ]
    monkeypatch.setattr("vlm_lens.data.load_samples", lambda *_, **__: mixed)
    assert run("types", *FEW, "--out", out) == 0
    assert "Note: 2 samples left out: no image" in capsys.readouterr().out
    assert NeuronTypes.load(out).parameters["n_samples"] == 3
    assert len(loaded) == 1


def test_an_unreadable_image_is_refused_by_its_line(
    loaded: list, out: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "2.png").write_bytes(b"no image")
    said = refused(capsys, "types", "--data", data, *FEW, "--out", out)
    assert "line 3" in said
    assert "is no image or is damaged" in said
    assert loaded == []


def test_answers_that_are_missing_are_refused(
    loaded: list, out: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data, [line | {"answer": " "} for line in lines_of(data)])
    said = refused(capsys, "types", "--data", data, *FEW, "--out", out)
    assert "none of the 4 samples has one" in said
    assert loaded == []


def test_prompts_that_the_model_cannot_take_are_refused(
    loaded: list, out: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data, [line | {"text": "<image> <image> ?"} for line in lines_of(data)])
    said = refused(capsys, "types", "--data", data, *FEW, "--out", out)
    assert "image" in said
    assert not out.exists()
    assert len(loaded) == 1


def test_own_answers_without_a_word_are_refused(
    loaded: list,
    out: Path,
    llava: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A model that says nothing has no text tokens: there is no share, and never NaN."""
    end = llava.model.tokenizer.eos_token_id

    def silent(model: Any, inputs: Any, **_: Any) -> torch.Tensor:
        ids = inputs.input_ids
        return torch.cat([ids, ids.new_full((len(ids), 1), end)], dim=1)

    monkeypatch.setattr("vlm_lens.passes.answers.greedy_tokens", silent)
    given = ("--n", 3, "--top-samples", 2, "--out", out)
    assert "no tokens of type 'answer text'" in refused(capsys, "types", *given)
    assert not out.exists()
    assert len(loaded) == 1


# Going on -----------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("after", [2, 6])
def test_an_interrupted_run_goes_on(
    loaded: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
) -> None:
    """Stopped in the first pass, and in the second."""
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    given = ("types", *FEW, "--batch-size", 1, "--out")
    assert run(*given, whole) == 0
    assert interrupt("scored", after, *given, halved) == [*range(1, after + 1)]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "vlm-lens types: interrupted; the same command goes on from what is done"
    assert not (halved / "types.json").exists()
    batches = watch(monkeypatch, "scored", lambda done, total: (done, total))
    assert run(*given, halved) == 0
    assert batches == [(n, 8) for n in range(after + 1, 9)]
    assert_same(NeuronTypes.load(halved), NeuronTypes.load(whole))
    batches.clear()
    assert run(*given, halved) == 0
    assert batches == []
    assert len(loaded) == 4


def test_a_folder_belongs_to_one_command(
    loaded: list, out: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("types", "--data", data, *FEW, "--out", out)
    assert run(*given) == 0
    capsys.readouterr()
    assert "which differs in T-v: it was made by" in refused(capsys, *given, "--T-v", 3)
    assert "differs in" in refused(capsys, "miner", "--out", out)
    picture(9).save(data / "0.png")
    assert "differs in samples" in refused(capsys, *given)
    assert len(loaded) == 2


@pytest.mark.full
@pytest.mark.parametrize(
    ("damaged", "said"),
    [
        ("checkpoint/statistics-progress.json", "what is half done starts anew"),
        ("checkpoint/*.safetensors", "what is half done starts anew"),
        ("run.json", "name a new folder with --out"),
    ],
)
def test_what_is_damaged_says_what_to_delete(
    loaded: list, out: Path, capsys: pytest.CaptureFixture[str], damaged: str, said: str
) -> None:
    given = ("types", *FEW, "--batch-size", 1, "--out", out)
    interrupt("scored", 2, *given)
    [path] = out.glob(damaged)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    capsys.readouterr()
    line = refused(capsys, *given)
    assert "damaged" in line
    named = out / damaged.replace("*.safetensors", "statistics-progress.json")
    assert f"To go on, delete '{named}': " in line
    assert said in line
    if damaged != "run.json":
        named.unlink()
        assert run(*given) == 0
    assert loaded


@pytest.mark.full
def test_whatever_ends_a_run_the_same_command_goes_on(
    loaded: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is killed, or the disk is full, between the files of a checkpoint and of a result."""
    whole, given = tmp_path / "whole", ("types", *FEW, "--out")
    assert run(*given, whole) == 0
    for number, killed in [(4, True), (11, False), (15, True)]:
        out = tmp_path / f"{number}"
        with suppress(Killed), interrupted(number, killed=killed) as failed:
            capsys.readouterr()
            assert run(*given, out) == 1
            last = capsys.readouterr().err.splitlines()[-1]
            assert re.fullmatch(rf".*cannot write '{out}.*Make room and run the same command", last)
        assert failed, number
        assert run(*given, out) == 0
        assert_same(NeuronTypes.load(out), NeuronTypes.load(whole))
        assert not [*out.rglob(".*")]
    assert loaded


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--n", 0], "expected --n of at least 1, got 0"),
        (["--top-samples", 0], "expected top_samples of at least 1"),
        (["--T-v", 10], "expected T_v from 0 to below 10, got 10.0"),
        (["--n-t", 0], "expected a whole number n_t of at least 1, got 0"),
        (["--high-confidence", 1], "expected high_confidence from 0 to below 1"),
        (["--alpha", -1], "expected alpha from 0 to below 1"),
        (["--task", "text", "--n", 2], "types needs images, but none of the 2 samples has one"),
        (["--data", "./missing"], "there is no folder missing"),
        (["--data", "./missing", "--task", "caption"], "--task is about the world"),
        (["--device", "nowhere"], "the device 'nowhere' does not work here"),
        (["--out", "FILE"], "it is a file; name a folder"),
    ],
)
def test_bad_input_is_one_line_and_needs_no_model(
    loaded: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    assert message in refused(capsys, "types", *given)
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]
    assert loaded == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--sites", "nothing.*"], "nothing.*"),
        (["--component", "qformer"], "there is no component 'qformer'"),
        (["--component", "vision_encoder"], "'answer text'"),
    ],
)
def test_what_only_the_model_knows_is_refused_before_work_starts(
    loaded: list,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[object],
    message: str,
) -> None:
    assert message in refused(capsys, "types", *FEW, *given, "--out", out)
    assert not out.exists()
    assert len(loaded) == 1

"""``vlm-lens can`` and ``pcicn``: what they write, say and refuse, and how they go on."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.families import build
from tests.handing_out import Asked, hand_out
from tests.page import Page, assert_self_contained
from tests.tiny import Tiny, build_tiny, picture
from vlm_lens import HookedVLM, load_samples
from vlm_lens.analyses import can, pcicn
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.analyses.entry_scores import EntryScores
from vlm_lens.cli import main
from vlm_lens.cli.progress import Bar
from vlm_lens.masking.measurement import Measurement
from vlm_lens.results.scores import Scores

FEW = ("--n", 3, "--max-k", 16, "--max-new-tokens", 3)
NOISE = ("--n-noisy", 3, "--max-k", 16, "--max-new-tokens", 3)
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, llava: Tiny) -> Asked:
    """Loads the tiny model whatever is asked for, and records what that was."""
    return hand_out(monkeypatch, llava.model)


@pytest.fixture
def imagefolder(tmp_path: Path) -> Path:
    """Four questions of two categories."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for i in range(4):
        picture(i).save(folder / f"{i}.png")
        line = {"file_name": f"{i}.png", "text": f"what color is the circle {ATTACK} ?"}
        lines.append(line | {"answer": "red", "category": ["color", ATTACK][i % 2]})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the circle is red . the square is blue . is the square left ? " * 20)
    return path


def run(*options: object) -> int:
    return main([str(option) for option in options])


def refused(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The one line that a refused run says, on stderr, after its progress."""
    assert run(*options) == 2
    out, err = capsys.readouterr()
    *progress, last = err.splitlines()
    assert out == ""
    assert all(line.startswith("[") for line in progress), err
    assert last.startswith(f"vlm-lens {options[0]}: error: ")
    return last


def result_in(folder: Path) -> dict[str, Any]:
    """What is in the file of a result, without its dates."""
    text = (folder / "critical.json").read_text()
    return json.loads(re.sub(r'"date": "[^"]*"', '"date": ""', text))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records each k that is measured."""
    return watch(monkeypatch, "measured", lambda measurement: measurement.k)


def watch(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    noted: Callable[..., Any],
    *,
    stop_after: int | None = None,
) -> list[Any]:
    """Records what a bar is told; raises KeyboardInterrupt after so many times."""
    seen: list[Any] = []

    def tell(bar: Bar, *given: Any) -> None:  # noqa: ARG001
        seen.append(noted(*given))
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(Bar, name, tell)
    return seen


def interrupt(name: str, after: int, *options: object) -> list[Any]:
    """Runs a command and stops it when its bar has been told something so many times."""
    with pytest.MonkeyPatch.context() as patched:
        seen = watch(patched, name, lambda *given: given[0], stop_after=after)
        assert run(*options) == 130
    return seen


def test_answers_that_are_wrong_from_the_start_are_said_on_the_page_and_here(
    loaded: list, out: Path, imagefolder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--data", imagefolder, "--target", "answer", "--max-k", 4)
    assert run("can", *given, "--n", 3, "--out", out / "can") == 0
    assert run("pcicn", *given, "--n-noisy", 3, "--out", out / "pcicn") == 0
    said = capsys.readouterr().out
    assert said.count("Note: with nothing masked the model gives 0 of the answers of the data") == 2
    assert "Its answers count as degraded with nothing masked: no k is where that begins" in said
    assert "Degradation begins" not in said
    assert "answers are left" not in said
    shown = (out / "can" / "report.html").read_text()
    assert "with nothing masked agreement is 0, which counts as degraded" in shown
    assert len(loaded) == 2


# What can writes and says -------------------------------------------------------------------------


def test_can_does_what_the_functions_do(
    loaded: list, llava: Tiny, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("can", *FEW, "--alpha", 1, "--tokens", "sum", "--seed", 5, "--out", out) == 0
    samples = load_samples("shapes-llava", n=3, seed=5)
    scores = can.score(llava.model, samples, alpha=1.0, tokens="sum", max_new_tokens=3)
    expected = can.find_critical(llava.model, samples, scores, max_k=16, max_new_tokens=3)
    found, kept = CriticalNeurons.load(out), Scores.load(out)
    assert list(found.ranking) == list(expected.ranking)
    assert found.curve == expected.curve
    assert (found.stages, found.sizes) == (expected.stages, expected.sizes)
    assert all((kept[name] == scores[name]).all() for name in scores)
    assert found.parameters["score"]["alpha"] == 1
    said, err = capsys.readouterr()
    assert said.splitlines()[-1] == str(out / "report.html")
    assert "best-ranked neurons of" in said.splitlines()[0]
    assert re.search(r"^stage +k +collapsed +perplexity", said, flags=re.MULTILINE)
    assert all(line.startswith("[") for line in err.splitlines())
    assert loaded == [("shapes-llava", {"device": None})]


def test_the_report_of_can_is_self_contained(loaded: list, out: Path, text: Path) -> None:
    assert run("can", *FEW, "--out", out) == 0
    shown = Page((out / "report.html").read_text(encoding="utf-8"))
    assert_self_contained(shown)
    assert f"vlm-lens can --n 3 --max-k 16 --max-new-tokens 3 --out {out}" in shown.text
    assert len(shown.figures) == 2
    assert len(loaded) == 1


def test_options_reach_their_places(loaded: list, out: Path) -> None:
    model = ("--model", "my/model", "--device", "cpu", "--dtype", "float32")
    scores = ("--sites", "post", "--component", "vision_encoder", "--target", "answer")
    search = ("--fill", "mean", "--metrics", "accuracy", "own_perplexity", "--exhaustive")
    given = (*model, *scores, *search, "--batch-size", 2, "--max-new-tokens", 3, "--max-k", 3)
    assert run("can", "--n", 3, *given, "--out", out) == 0
    found = CriticalNeurons.load(out)
    expected = {"fill": "mean", "exhaustive": True, "batch_size": 2, "target": "answer"}
    expected |= {"max_new_tokens": 3, "metrics": ["accuracy", "own_perplexity"], "n_samples": 3}
    assert {name: found.parameters[name] for name in expected} == expected
    assert {neuron.site for neuron in found.ranking} == {"mlp.hook_post"}
    assert {neuron.component for neuron in found.ranking} == {"vision_encoder"}
    [(name, options)] = loaded
    assert (name, options["device"], str(options["dtype"])) == ("my/model", "cpu", "torch.float32")


@pytest.mark.full
def test_controls_add_tables_to_what_is_there(
    loaded: list, out: Path, imagefolder: Path, measured: list, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--max-k", 6, "--max-new-tokens", 2, "--seeds", 7)
    given = ("can", "--data", imagefolder, *few, "--out", out)
    assert run(*given) == 0
    before, at_first = result_in(out), list(measured)
    assert run(*given, "--controls") == 0
    assert result_in(out) == before
    tables = ["by_component", "by_matrix", "by_category", "against_baselines", "against_artefacts"]
    comparisons = {name: Comparison.load(out / name) for name in tables}
    assert list(comparisons["by_category"]) == ["all categories", "color", ATTACK]
    assert "random, seed 7" in comparisons["against_baselines"]
    assert "same norm, seed 7" in comparisons["against_artefacts"]
    shared = [comparisons[name] for name in ("by_component", "against_baselines")]
    assert all(next(iter(c.values())).curve == CriticalNeurons.load(out).curve for c in shared)
    shown = Page((out / "report.html").read_text(encoding="utf-8"))
    assert_self_contained(shown)
    assert shown.count("img") == 0
    assert len(shown.figures) == 2 + len(tables)
    said = capsys.readouterr().out
    for comparison in comparisons.values():
        assert comparison.title in said
        assert comparison.title in shown.text
    measured.clear()
    assert run(*given, "--controls") == 0
    assert measured == []
    assert len(at_first) > 3
    assert len(loaded) == 3


def test_text_from_a_file(loaded: list, out: Path, text: Path) -> None:
    assert run("can", "--text", text, "--words", 14, *FEW, "--out", out) == 0
    found = CriticalNeurons.load(out)
    assert found.parameters["target"] == "text"
    assert [len(prompt.split()) for prompt in found.prompts] == [14, 14, 14]
    assert {neuron.component for neuron in found.ranking} == {"language_model"}
    assert len(loaded) == 1


def test_a_model_that_does_not_know_the_text_is_noted(
    shapes: HookedVLM,  # noqa: ARG001
    out: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The bundled model writes answers; the words of questions are noise to it."""
    assert run("can", "--text", text, "--words", 20, *FEW, "--out", out) == 0
    assert "Note: the clean model's perplexity is" in capsys.readouterr().out


# Going on -----------------------------------------------------------------------------------------


@pytest.mark.full
def test_an_interrupted_search_goes_on(
    loaded: list, tmp_path: Path, measured: list, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    assert run("can", *FEW, "--out", whole) == 0
    n_whole = len(measured)
    capsys.readouterr()
    assert len(interrupt("measured", 4, "can", *FEW, "--out", halved)) == 4
    said, err = capsys.readouterr()
    assert said == ""
    assert err.splitlines()[-1] == (
        "vlm-lens can: interrupted; the same command goes on from what is done"
    )
    assert not (halved / "critical.json").exists()
    measured.clear()
    assert run("can", *FEW, "--out", halved) == 0
    assert len(measured) <= n_whole - 4
    assert result_in(halved) == result_in(whole)
    measured.clear()
    assert run("can", *FEW, "--out", halved) == 0
    assert measured == []
    assert len(loaded) == 4


@pytest.mark.full
def test_interrupted_scoring_goes_on(
    loaded: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    one_by_one = ("can", *FEW, "--batch-size", 1, "--out")
    assert run(*one_by_one, whole) == 0
    assert interrupt("scored", 2, *one_by_one, halved) == [1, 2]
    assert not (halved / "scores.json").exists()
    batches = watch(monkeypatch, "scored", lambda done, total: (done, total))
    assert run(*one_by_one, halved) == 0
    assert batches == [(3, 3)]
    assert result_in(halved) == result_in(whole)
    assert len(loaded) == 3


@pytest.mark.full
def test_interrupted_controls_go_on(loaded: list, tmp_path: Path, measured: list) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    few = ("--n", 2, "--max-k", 2, "--max-new-tokens", 1, "--component", "projector")
    given = ("can", *few, "--seeds", 0, "--controls")
    assert run(*given, "--out", whole) == 0
    n_whole = len(measured)
    n_before = n_whole // 2
    interrupt("measured", n_before, *given, "--out", halved)
    measured.clear()
    assert run(*given, "--out", halved) == 0
    assert len(measured) <= n_whole - n_before
    for table in ("by_matrix", "by_category", "against_baselines", "against_artefacts"):
        for folder in (whole / table).glob("??"):
            assert result_in(halved / table / folder.name) == result_in(folder)
    assert len(loaded) == 3


def test_a_folder_belongs_to_one_command(
    loaded: list, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("can", *FEW, "--out", out) == 0
    before = result_in(out)
    capsys.readouterr()
    said = refused(capsys, "can", *FEW, "--alpha", 1, "--out", out)
    assert "which differs in alpha: it was made by `vlm-lens can --n 3" in said
    assert "differs in" in refused(capsys, "pcicn", *NOISE, "--out", out)
    assert result_in(out) == before
    assert len(loaded) == 1  # both were refused without a model


def test_a_folder_belongs_to_one_model_and_to_the_same_samples(
    loaded: list,
    out: Path,
    imagefolder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("can", "--data", imagefolder, *FEW, "--out", out)
    assert run(*given) == 0
    capsys.readouterr()
    picture(9).save(imagefolder / "0.png")
    assert "differs in samples" in refused(capsys, *given)
    picture(0).save(imagefolder / "0.png")
    other = build_tiny("clip-llama", vision_feature_layer=-1)
    other.hf.lm_head.weight.data += 1
    monkeypatch.setattr(HookedVLM, "from_pretrained", lambda *_, **__: other.model)
    assert "differs in weights" in refused(capsys, *given)
    assert len(loaded) == 2


def test_a_damaged_checkpoint_is_refused(
    loaded: list, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt("measured", 2, "can", *FEW, "--out", out)
    (out / "checkpoint" / "search.json").write_text("{")
    capsys.readouterr()
    assert "it is damaged" in refused(capsys, "can", *FEW, "--out", out)
    assert len(loaded) == 2


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["can", "--n", 0], "expected --n of at least 1, got 0"),
        (["can", "--alpha", 2], "expected alpha from 0 to 1, got 2.0"),
        (["can", "--max-k", 0], "expected --max-k of at least 1, got 0"),
        (["can", "--batch-size", 0], "expected --batch-size of at least 1"),
        (["can", "--max-new-tokens", 0], "expected --max-new-tokens of at least 1"),
        (["can", "--split", "holdout"], "holdout"),
        (["can", "--data", "./missing"], "there is no folder missing"),
        (["can", "--data", "./missing", "--task", "text"], "--task is about the world"),
        (["can", "--device", "nowhere"], "the device 'nowhere' does not work here"),
        (["can", "--words", 9], "--words is about the file of --text"),
        (["can", "--text", "TEXT", "--words", 0], "expected --words of at least 1, got 0"),
        (["can", "--text", "missing.txt"], "there is no file missing.txt"),
        (["can", "--text", "missing.txt", "--data", "x"], "--data has no meaning with it"),
        (["can", "--text", "missing.txt", "--target", "own"], "--target has no meaning with it"),
        (["can", "--text", "TEXT", "--tokens", "last"], "--tokens last is about answers"),
        (["can", "--text", "TEXT", "--metrics", "accuracy"], "needs samples with answers"),
        (["can", "--out", "TEXT"], "it is a file; name a folder"),
        (["can", "--out", "."], "holds other files: name a new folder"),
        (["pcicn", "--sample", -1], "expected --sample of at least 0, got -1"),
        (["pcicn", "--alpha", 0], "expected --alpha above 0, got 0.0"),
        (["pcicn", "--n-noisy", 0], "expected --n-noisy of at least 1, got 0"),
        (["pcicn", "--batch-size", 0], "expected --batch-size of at least 1"),
        (["pcicn", "--text", "missing.txt"], "there is no file missing.txt"),
        (["pcicn", "--text", "two words", "--sample", 1], "but --text is the text itself"),
        (["pcicn", "--text", "TEXT", "--sample", 9], "no sample 9, but only 3"),
    ],
)
def test_bad_input_is_one_line_and_needs_no_model(
    loaded: list,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[object],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = [text.name if option == "TEXT" else option for option in given]
    assert message in refused(capsys, *named)
    assert [path.name for path in tmp_path.iterdir()] == [text.name]
    assert loaded == []


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["can", "--sites", "nothing.*"], "nothing.*"),
        (["can", "--component", "qformer"], "there is no component 'qformer'"),
        (["can", "--sites", "blocks.0.attn.hook_pattern"], "has no neuron dimension"),
        (["can", "--task", "text", "--component", "projector"], "without an image nothing reaches"),
        (["pcicn", "--text", "is it red ?", "--noise-on", "image"], "has none"),
    ],
)
def test_what_only_the_model_knows_is_refused_before_work_starts(
    loaded: list,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[object],
    message: str,
) -> None:
    assert message in refused(capsys, *given, "--out", out)
    assert not out.exists()
    assert len(loaded) == 1


def test_a_model_that_needs_images_is_not_given_text(
    out: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hf_model, processor = build("blip2-opt")
    model = HookedVLM(hf_model, processor=processor)
    monkeypatch.setattr(HookedVLM, "from_pretrained", lambda *_, **__: model)
    said = refused(capsys, "can", "--text", text, *FEW, "--out", out)
    assert "the model cannot take the first sample" in said
    assert "pixel_values" in said
    assert not out.exists()


def test_an_answer_that_is_missing_is_refused(
    loaded: list, imagefolder: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = imagefolder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"answer": "red", ', "", 1))
    given = ("can", "--data", imagefolder, "--target", "answer", "--out", out)
    assert "needs an answer with every sample" in refused(capsys, *given)
    assert loaded == []


def test_a_bug_is_not_dressed_up_as_bad_input(
    loaded: list, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(can, "score", broken)
    with pytest.raises(ValueError, match="a bug"):
        run("can", *FEW, "--out", out)
    assert len(loaded) == 1


# Progress -----------------------------------------------------------------------------------------


def test_bars_show_batches_k_and_metrics(
    loaded: list,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    assert run("can", *FEW, "--batch-size", 1, "--out", out) == 0
    shown = capsys.readouterr().err
    assert re.search(r"scoring: 100%\|.*\| 3/3 ", shown)
    assert re.search(r"searching: .*k=\d+, perplexity_ratio=[\d.e+]+, agreement=[\d.]+", shown)
    assert len(loaded) == 1


def test_a_bar_shows_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    with tqdm(file=sys.stderr, mininterval=0) as shown:
        Bar(shown).measured(Measurement(7, {"perplexity_ratio": float("inf")}))
    assert "k=7, perplexity_ratio=inf" in capsys.readouterr().err


# PCICN --------------------------------------------------------------------------------------------


def test_pcicn_does_what_the_functions_do(
    loaded: list, llava: Tiny, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--alpha", 2, "--epsilon", 0.25, "--seed", 3, "--noise-on", "image", "--sample", 1)
    assert run("pcicn", *NOISE, *given, "--out", out) == 0
    sample = load_samples("shapes-llava", n=2)[1]
    options = {"alpha": 2.0, "n_noisy": 3, "seed": 3, "noise_on": "image"}
    entries = pcicn.score(llava.model, sample, **options)
    search = {"epsilon": 0.25, "max_k": 16, "max_new_tokens": 3}
    expected = pcicn.find_critical(llava.model, sample, entries, **search)
    found, kept = CriticalNeurons.load(out), EntryScores.load(out)
    assert list(found.ranking) == list(expected.ranking)
    assert (found.curve, found.stages) == (expected.curve, expected.stages)
    assert (kept.score == entries.score).all()
    assert found.sizes == entries.sizes
    said, _ = capsys.readouterr()
    assert said.splitlines()[-1] == str(out / "report.html")
    assert len(loaded) == 1


def test_pcicn_counts_entries_and_channels(
    loaded: list, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pcicn", *NOISE, "--epsilon", 0.001, "--max-k", 500, "--out", out) == 0
    found = CriticalNeurons.load(out)
    n_entries = EntryScores.load(out).n_entries(found.k or 0)
    assert f"k = {found.k} channels are the first {n_entries} entries" in capsys.readouterr().out
    shown = Page((out / "report.html").read_text(encoding="utf-8"))
    assert_self_contained(shown)
    words = " ".join(shown.text.split())
    assert f"Distinct channels {found.k:,} Entries of the list {n_entries:,}" in words
    assert len(loaded) == 1


@pytest.mark.parametrize("kind", ["text", "file"])
def test_pcicn_on_text(loaded: list, llava: Tiny, out: Path, text: Path, kind: str) -> None:
    given = "is the red circle left ?" if kind == "text" else text
    options = ("--words", 14, "--sample", 1) if kind == "file" else ()
    assert run("pcicn", "--text", given, *options, *NOISE, "--out", out) == 0
    found = CriticalNeurons.load(out)
    [prompt] = found.prompts
    expected = " ".join(text.read_text().split()[14:28]) if kind == "file" else given
    assert prompt == expected
    assert found.parameters["target"] == "text"
    entries = pcicn.score(llava.model, prompt, n_noisy=3)  # raw text, without a chat template
    assert list(EntryScores.load(out).tokens) == list(entries.tokens)
    assert len(loaded) == 1


@pytest.mark.full
def test_pcicn_has_controls_and_goes_on(loaded: list, out: Path, measured: list) -> None:
    given = ("pcicn", *NOISE, "--seeds", 4, "--controls", "--out", out)
    interrupt("measured", 3, *given)
    assert not (out / "critical.json").exists()
    assert run(*given) == 0
    assert list(Comparison.load(out / "against_random")) == ["PCICN", "random, seed 4"]
    artefacts = Comparison.load(out / "against_artefacts")
    assert list(artefacts) == ["PCICN", "first token left alone", "float64"]
    assert artefacts["PCICN"].curve == CriticalNeurons.load(out).curve
    measured.clear()
    assert run(*given) == 0
    assert measured == []
    assert len(loaded) == 3


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name, option in (("can", "--controls"), ("pcicn", "--n-noisy")):
        with pytest.raises(SystemExit) as stop:
            run(name, "--help")
        assert stop.value.code == 0
        assert option in capsys.readouterr().out

"""``vlm-lens miner``: what it writes, says and refuses, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import build
from tests.handing_out import Asked, hand_out
from tests.page import Page, assert_self_contained
from tests.test_cli_search import ATTACK, interrupt, refused, run, watch
from tests.tiny import Tiny, picture
from vlm_lens import HookedVLM, NeuronSet, load_samples
from vlm_lens.analyses import miner
from vlm_lens.analyses.mined import Mined
from vlm_lens.analyses.miner_curve import MaskingCurve, masking_curve
from vlm_lens.analyses.miner_scores import ModalityScores
from vlm_lens.experiments import Matrix, matrix
from vlm_lens.neurons import Neuron

FEW = ("--n", 3, "--ratio", 0.2)
ASKED = ("--ratios", 0.05, 0.2, "--n-measured", 2, "--seeds", 4, 5, "--max-new-tokens", 2)
TASKS = ("image", "caption", "text")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, llava: Tiny) -> Asked:
    """Loads the tiny model whatever is asked for, and records what that was."""
    return hand_out(monkeypatch, llava.model)


def make_folder(folder: Path, *, n: int = 3, texts: list[str] | None = None) -> Path:
    """A folder of questions about images."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(n):
        picture(i).save(folder / f"{i}.png")
        text = "what color ?" if texts is None else texts[i]
        lines.append({"file_name": f"{i}.png", "text": text, "answer": "red"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def page_in(folder: Path) -> Page:
    shown = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert_self_contained(shown)
    assert "NaN" not in shown.text
    assert "nan" not in shown.text.split()
    return shown


def frames_in(folder: Path) -> dict[str, Any]:
    """All measurements in a folder, as they are on disk but for their dates."""
    found: dict[str, Any] = {}
    for kind in (Matrix, MaskingCurve):
        for path in sorted(folder.glob(f"**/{kind.KIND}.json")):
            if "checkpoint" not in path.parts:
                name = str(path.relative_to(folder))
                found[name] = kind.load(path.parent).frame.to_dict("records")
    return found


def as_lists(sets: dict[str, NeuronSet]) -> dict[str, list[Neuron]]:
    return {modality: list(neurons) for modality, neurons in sets.items()}


# What it writes and says --------------------------------------------------------------------------


def test_does_what_the_functions_do(
    loaded: list, llava: Tiny, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("miner", *FEW, "--seed", 5, "--out", out) == 0
    data = {task: load_samples("shapes-llava", task=task, n=3, seed=5) for task in TASKS}
    scores = miner.score(llava.model, data)
    selected = miner.select(scores, ratio=0.2)
    kept = ModalityScores.load(out / "scores")
    assert torch.equal(kept.importance, scores.importance)
    assert kept.n_samples == {"image": 3, "caption": 3, "text": 3}
    assert {m: list(s) for m, s in Mined.load(out).selected.items()} == as_lists(selected)
    assert list(selected) == ["text", "special", "image"]
    said, err = capsys.readouterr()
    lines = said.splitlines()
    assert lines[0] == "MINER selects 36 of 192 neurons for text, special and image."
    assert lines[-1] == str(out / "report.html")
    assert "Note: never in these data sets, and left out of selections: video, audio" in lines
    assert "was not measured: see --controls" in said
    assert any(line.split() == ["all", "12", "12", "12"] for line in lines)
    assert all(line.startswith("[") for line in err.splitlines())
    assert loaded == [("shapes-llava", {"device": None})]


def test_the_page_is_self_contained(loaded: list, out: Path) -> None:
    assert run("miner", *FEW, "--out", out) == 0
    shown = page_in(out)
    assert f"vlm-lens miner --n 3 --ratio 0.2 --out {out}" in shown.text
    assert len(shown.figures) == 2
    assert "see --controls, which masks them, and random ones" in " ".join(shown.text.split())
    for option in ("strategy", "metric weights", "n measured", "max new tokens", "rotated"):
        assert option in shown.text.replace("_", " ")
    assert len(loaded) == 1


def test_options_reach_their_places(loaded: list, llava: Tiny, out: Path) -> None:
    model = ("--model", "my/model", "--device", "cpu", "--dtype", "float32")
    weights = ("--metric-weights", 1, 0, 0, 0, 2)
    how = ("--separate", "special_text_as_one", "--sites", "post", "--strategy", "uniform")
    given = (*model, *weights, *how, "--tasks", "text", "image", "--batch-size", 2)
    assert run("miner", *FEW, *given, "--out", out) == 0
    data = {task: load_samples("shapes-llava", task=task, n=3) for task in ("text", "image")}
    split = "special_text_as_one"
    scores = miner.score(llava.model, data, split=split, sites="post", batch_size=2)
    weighted = {"prob": 1, "attn_q": 2}
    expected = miner.select(scores, ratio=0.2, strategy="uniform", weights=weighted)
    kept = ModalityScores.load(out / "scores")
    assert torch.equal(kept.importance, scores.importance)
    assert kept.parameters["batch_size"] == 2
    assert {m: list(s) for m, s in Mined.load(out).selected.items()} == as_lists(expected)
    [(name, options)] = loaded
    assert (name, options) == ("my/model", {"device": "cpu", "dtype": torch.float32})
    assert "my/model" in page_in(out).text


@pytest.mark.full
def test_controls_are_what_the_functions_measure(
    loaded: list, llava: Tiny, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--tasks", "image", "text", "--fill", "min", "--controls")
    assert run("miner", *FEW, *ASKED, *given, "--out", out) == 0
    data = {task: load_samples("shapes-llava", task=task, n=3) for task in ("image", "text")}
    tasks = {name: samples[:2] for name, samples in data.items()}
    scores = miner.score(llava.model, data)
    options: dict[str, Any] = {"seeds": [4, 5], "value": "min", "max_new_tokens": 2}
    found = matrix(llava.model, miner.select(scores, ratio=0.2), tasks, **options)
    assert Matrix.load(out / "specificity").frame.equals(found.frame)
    for place, complement in (("curve", False), ("complement", True)):
        curve = masking_curve(
            llava.model, scores, tasks, ratios=[0.05, 0.2], complement=complement, **options
        )
        kept = MaskingCurve.load(out / place)
        columns = list(curve.frame.columns)
        order = ["task", "ratio", "masked", "seed"]
        one, two = (c.frame.sort_values(order, ignore_index=True) for c in (kept, curve))
        assert one[columns].equals(two[columns])
        assert kept.parameters["complement"] == complement
    shown = page_in(out)
    assert len(shown.figures) == 5
    titles = [figure["layout"]["title"]["text"] for figure in shown.figures]
    assert "all but modality-specific neurons masked" in titles[4]
    assert "Performance with modality-specific neurons masked" in titles[3]
    said = capsys.readouterr().out
    assert "more than random" in said
    assert "was not measured" not in said
    assert len(loaded) == 1


def test_one_modality_shares_nothing(loaded: list, out: Path) -> None:
    assert run("miner", *FEW, "--separate", "prompt", "--tasks", "text", "--out", out) == 0
    assert len(page_in(out).figures) == 1
    assert Mined.load(out).overlap is None
    assert len(loaded) == 1


@pytest.mark.full
def test_a_modality_that_never_occurs_is_left_out_and_said(
    loaded: list, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("miner", *FEW, *ASKED, "--tasks", "text", "--controls", "--out", out) == 0
    assert set(Mined.load(out).selected) == {"text", "special"}
    said = capsys.readouterr().out
    assert "left out of selections: image, video, audio" in said
    assert "image" not in Matrix.load(out / "specificity").frame["masked"].tolist()
    page_in(out)
    assert len(loaded) == 1


@pytest.mark.full
def test_an_empty_set_is_said_and_is_never_nan(
    loaded: list, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (
        "--tasks",
        "image",
        "--n",
        2,
        "--strategy",
        "adaptive",
        "--ratio",
        0.006,
    )  # one neuron of 192
    assert run("miner", *few, *ASKED, "--controls", "--out", out) == 0
    assert sorted(map(len, Mined.load(out).selected.values())) == [0, 0, 1]
    said = capsys.readouterr().out
    assert "No neuron was selected for" in said
    assert "nan" not in said.lower()
    assert len(Matrix.load(out / "specificity").frame["masked"].unique()) == 1
    page_in(out)
    assert len(loaded) == 1


# Data folders -------------------------------------------------------------------------------------


def test_several_folders_are_several_data_sets(loaded: list, tmp_path: Path, out: Path) -> None:
    one, two = make_folder(tmp_path / "a" / "first"), make_folder(tmp_path / "b" / "<b>&", n=2)
    assert run("miner", "--data", one, "--data", two, *FEW, "--out", out) == 0
    assert ModalityScores.load(out / "scores").n_samples == {"first": 3, "<b>&": 2}
    assert "<b>&" in page_in(out).text
    assert len(loaded) == 1


def test_folders_of_one_name_keep_their_paths(loaded: list, tmp_path: Path, out: Path) -> None:
    one, two = make_folder(tmp_path / "a" / "x"), make_folder(tmp_path / "b" / "x")
    assert run("miner", "--data", one, "--data", two, *FEW, "--out", out) == 0
    assert list(ModalityScores.load(out / "scores").n_samples) == [str(one), str(two)]
    assert len(loaded) == 1


@pytest.mark.full
def test_a_sample_that_the_model_cannot_take_is_left_out_with_a_reason(
    loaded: list, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"what {ATTACK} ?", "<image> <image> two of one ?", "red ?"]
    folder = make_folder(tmp_path / "data", texts=texts)
    assert run("miner", "--data", folder, *FEW, *ASKED, "--controls", "--out", out) == 0
    scores = ModalityScores.load(out / "scores")
    assert scores.n_samples == {"data": 2}
    assert scores.parameters["left_out"] == {"data": [1]}
    said, err = capsys.readouterr()
    assert "Note: 1 sample left out: ValueError" in said
    assert all(line.startswith("[") for line in err.splitlines())
    shown = page_in(out)
    assert "1 sample left out" in shown.text
    assert shown.count("img") == 0
    assert len(loaded) == 1


def test_a_data_set_that_the_model_cannot_take_is_refused(
    loaded: list, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "data", texts=["<image> <image> ?"] * 3)
    said = refused(capsys, "miner", "--data", folder, *FEW, "--out", out)
    assert "the model can take none of the 3 samples of 'data'" in said
    assert not out.exists()
    assert len(loaded) == 1


def test_a_model_that_needs_images_is_not_asked_without(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hf_model, processor = build("blip2-opt")
    model = HookedVLM(hf_model, processor=processor)
    monkeypatch.setattr(HookedVLM, "from_pretrained", lambda *_, **__: model)
    said = refused(capsys, "miner", *FEW, "--out", out)
    assert "the model does not take prompts such as those of 'text'" in said
    assert "Choose others with --tasks or --data" in said
    assert not out.exists()
    assert run("miner", *FEW, "--tasks", "image", "--out", out) == 0


def test_an_unreadable_image_is_refused_by_its_line(
    loaded: list, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "data")
    (folder / "1.png").write_bytes(b"no image")
    said = refused(capsys, "miner", "--data", folder, *FEW, "--out", out)
    assert "line 2" in said
    assert "is no image or is damaged" in said
    assert loaded == []


def test_controls_need_answers(
    loaded: list, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "data")
    metadata = folder / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"red"', '" "'))
    given = ("miner", "--data", folder, *FEW, "--out", out)
    assert "none of the 3 samples of 'data' has one" in refused(capsys, *given, "--controls")
    assert loaded == []
    assert run(*given) == 0


# Going on -----------------------------------------------------------------------------------------


def test_what_is_derived_is_made_anew(loaded: list, out: Path) -> None:
    assert run("miner", *FEW, "--out", out) == 0
    derived = [out / "miner.json", out / "report.html"]
    before = [path.read_bytes() for path in derived]
    for damage in (b'{\n "format": "vlm', b"\0\0"):
        for path in derived:
            path.write_bytes(damage)
        assert run("miner", *FEW, "--out", out) == 0
        assert [path.read_bytes() for path in derived] == before
    assert len(loaded) == 3


def test_a_folder_under_two_names_is_one_data_set(
    loaded: list, tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "data")
    (tmp_path / "link").symlink_to(folder)
    for other in (
        folder,
        f"{folder}/",
        f"{tmp_path}/./data",
        f"{folder}/../data",
        tmp_path / "link",
    ):
        said = refused(capsys, "miner", "--data", folder, "--data", other, *FEW, "--out", out)
        assert "is named twice" in said
    assert loaded == []


def test_interrupted_scoring_goes_on(
    loaded: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    one_by_one = ("miner", *FEW, "--batch-size", 1, "--out")
    assert run(*one_by_one, whole) == 0
    assert interrupt("scored", 4, *one_by_one, halved) == [1, 2, 3, 4]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "vlm-lens miner: interrupted; the same command goes on from what is done"
    assert not (halved / "scores" / "modality_scores.json").exists()
    batches = watch(monkeypatch, "scored", lambda done, total: (done, total))
    assert run(*one_by_one, halved) == 0
    assert batches == [(n, 9) for n in range(5, 10)]
    one, two = (ModalityScores.load(folder / "scores") for folder in (whole, halved))
    assert torch.equal(one.importance, two.importance)
    assert frames_in(halved) == frames_in(whole)
    assert len(loaded) == 3


@pytest.mark.full
def test_interrupted_controls_go_on_and_may_be_added_later(
    loaded: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    given = ("miner", *FEW, *ASKED, "--tasks", "image", "text")
    assert run(*given, "--controls", "--out", whole) == 0
    assert run(*given, "--out", halved) == 0
    assert not (halved / "specificity").exists()
    # Two batches for each set's tasks, two for the first ratio of the curve, one of the second.
    interrupt("scored", 5, *given, "--controls", "--out", halved)
    assert (halved / "specificity" / "matrix.json").exists()
    assert not (halved / "curve" / "masking_curve.json").exists()
    batches = watch(monkeypatch, "scored", lambda done, total: (done, total))
    assert run(*given, "--controls", "--out", halved) == 0
    assert batches == [(1, 2), (2, 2)] * 3  # the second ratio again, and the complement of both
    found = frames_in(halved)
    assert sorted(found) == [
        *("complement/masking_curve.json", "curve/masking_curve.json", "specificity/matrix.json"),
    ]
    assert found == frames_in(whole)
    batches.clear()
    assert run(*given, "--controls", "--out", halved) == 0
    assert batches == []
    assert len(loaded) == 5


def test_a_folder_belongs_to_one_command(
    loaded: list, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("miner", *FEW, "--out", out) == 0
    capsys.readouterr()
    said = refused(capsys, "miner", "--n", 3, "--ratio", 0.5, "--out", out)
    assert "which differs in ratio: it was made by `vlm-lens miner --n 3" in said
    assert "differs in" in refused(capsys, "can", "--out", out)
    assert len(loaded) == 1


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--n", 0], "expected --n of at least 1, got 0"),
        (["--batch-size", 0], "expected --batch-size of at least 1, got 0"),
        (["--ratio", 0], "expected ratio above 0 and at most 1, got 0.0"),
        (["--ratios", 0.1, 2], "expected ratios above 0 and at most 1, got 2.0"),
        (["--n-measured", 0], "expected n_measured of at least 1"),
        (["--max-new-tokens", 0], "expected max_new_tokens of at least 1"),
        (["--metric-weights", 0, 0, 0, 0, 0], "not all of them 0"),
        (["--metric-weights", -1, 0, 0, 0, 1], "expected a weight >= 0"),
        (["--split", "holdout"], "holdout"),
        (["--tasks", "text", "text"], "the data set 'text' is named twice"),
        (["--data", "./missing"], "there is no folder missing"),
        (["--data", "./missing", "--tasks", "text"], "--tasks is about the world"),
        (["--device", "nowhere"], "the device 'nowhere' does not work here"),
        (["--out", "FILE"], "it is a file; name a folder"),
        (["--out", "."], "holds other files: name a new folder"),
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
    assert message in refused(capsys, "miner", *given)
    assert [path.name for path in tmp_path.iterdir()] == ["FILE"]
    assert loaded == []


@pytest.mark.full
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--sites", "nothing.*"], "nothing.*"),
        (["--sites", "output"], "expected one site in each layer"),
        (["--sites", "vision_encoder.blocks.*.mlp.hook_post"], "expected sites in the MLPs"),
    ],
)
def test_what_only_the_model_knows_is_refused_before_work_starts(
    loaded: list,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[object],
    message: str,
) -> None:
    assert message in refused(capsys, "miner", *given, "--out", out)
    assert not out.exists()
    assert len(loaded) == 1


def test_a_ratio_that_selects_nothing_is_refused(
    loaded: list, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "take a larger ratio" in refused(
        capsys, "miner", "--n", 1, "--ratio", 0.006, "--out", out
    )
    assert len(loaded) == 1


def test_a_bug_is_not_dressed_up_as_bad_input(
    loaded: list, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(miner, "score", broken)
    with pytest.raises(TypeError, match="a bug"):
        run("miner", *FEW, "--out", out)
    assert len(loaded) == 1

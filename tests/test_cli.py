"""The command line, in this process: what it writes, says and refuses."""

from __future__ import annotations

import gc
import runpy
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.handing_out import Asked, hand_out
from tests.tiny import Tiny, picture
from vlm_lens import HookedVLM
from vlm_lens.architectures import BLOCKS, supported_architectures
from vlm_lens.architectures.table import COLUMNS, support_rows
from vlm_lens.cli import main
from vlm_lens.cli.demo import _LEFT_OUT
from vlm_lens.cli.imports import importing

QUESTION = "what color is the circle ?"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    picture(0).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, llava: Tiny) -> Asked:
    """Loads the tiny model whatever is asked for, and records what that was; few samples."""
    asked = hand_out(monkeypatch, llava.model)
    for name, n in (("COLLAPSE", 2), ("MODALITIES", 3), ("EXPLAINED", 6)):
        monkeypatch.setattr(f"vlm_lens.cli.demo.N_{name}", n)
    return asked


def demo(*options: object) -> int:
    return main(["demo", *map(str, options)])


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused run says, on stderr, after its progress."""
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    *progress, last = err.splitlines()
    assert all(line.startswith("[") for line in progress)
    assert last.startswith("vlm-lens demo: error: ")
    return last


def test_writes_a_report(
    image: Path, loaded: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.html"
    assert demo("--image", image, "--question", QUESTION, "--top", 3, "--out", target) == 0
    html = target.read_text(encoding="utf-8")
    assert QUESTION in html
    assert "vlm-lens demo --image" in html
    assert "--question &#39;what color is the circle ?&#39; --top 3" in html
    assert html.count("<article") == 3 + 6
    out, err = capsys.readouterr()
    assert out == f"{target}\n"
    assert "does not know" not in err
    assert len(err.splitlines()) == 11
    assert "Measured on 2 questions about images" in html
    assert "Measured on 3 prompts about images" in html
    assert "of 6 annotated samples" in html
    assert _LEFT_OUT not in html
    assert loaded == [("shapes-llava", {"device": None})]


def test_options_reach_their_places(
    image: Path, loaded: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.html"
    given = ("--image", image, "--question", "<script>alert(1)</script>", "--top", 3)
    assert demo(*given, "--out", target, "--model", "my/model", "--device", "cpu", "--seed", 7) == 0
    html = target.read_text(encoding="utf-8")
    assert "seed 7" in html
    assert "<code>my/model</code>" in html
    assert "<script>alert" not in html
    assert "Measured on this question alone." in html
    assert _LEFT_OUT in html
    assert "Which modality" not in html
    assert "react to?" not in html
    assert loaded == [("my/model", {"device": "cpu"})]
    assert "holds words that the model does not know" in capsys.readouterr().err


@pytest.mark.full
def test_the_default_run_uses_the_bundled_model(
    shapes: HookedVLM,  # noqa: ARG001 - says what is missing when the weights are
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<article") == 60 + 6
    assert "<code>vlm-lens demo</code>" in html
    assert html.count('class="card sheet"') == 1
    assert "15 for text, 15 for special and 15 for image" in html
    assert len(html) < 8e6
    assert capsys.readouterr().out == "report.html\n"


def test_another_question_about_the_bundled_image(loaded: list, tmp_path: Path) -> None:  # noqa: ARG001
    target = tmp_path / "out.html"
    assert demo("--question", "is the square red ?", "--top", 3, "--out", target) == 0
    assert "is the square red ?" in target.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--image": "missing.png"}, "'missing.png' does not exist"),
        ({"--device": "nowhere"}, "the device 'nowhere' does not work here"),
        ({"--image": __file__}, "Pillow recognises no image format"),
        ({"--image": "."}, "is a directory"),
        ({"--out": "missing/report.html"}, "there is no folder 'missing'"),
        ({"--out": "."}, "it is a folder"),
        ({"--question": " "}, "--question is empty"),
        ({"--question": ""}, "--question is empty"),
        ({"--out": "report.png"}, "it will be a page, whose name ends in .html"),
        ({"--out": "scene.png/report.html"}, "there is a file 'scene.png'"),
        ({"--top": "0"}, "expected to ablate 1 to 32 neurons"),
        ({"--top": "1000"}, "got 1000"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    image: Path,
    loaded: list,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"--image": str(image), "--question": QUESTION, "--out": "report.html", **changes}
    assert demo(*(part for pair in given.items() for part in pair)) == 2
    assert message in refusal(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]
    assert bool(loaded) == ("--top" in changes)  # else: not even loaded


def test_an_image_needs_a_question(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo("--image", image) == 2
    assert "--image needs a --question" in refusal(capsys)


def test_an_unknown_model_is_refused(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--image", image, "--question", QUESTION, "--out", tmp_path / "report.html")
    assert demo(*given, "--model", "no/such-model") == 2
    assert "Could not load 'no/such-model'" in refusal(capsys)


def test_a_bug_is_not_dressed_up_as_bad_input(
    image: Path, loaded: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a bug")

    assert loaded == []
    monkeypatch.setattr("vlm_lens.report.study.direct_effect", broken)
    with pytest.raises(ValueError, match="a bug"):
        demo("--image", image, "--question", QUESTION, "--top", 3, "--out", tmp_path / "r.html")


def test_ctrl_c_ends_with_one_line(
    image: Path, loaded: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    assert loaded == []
    monkeypatch.setattr("vlm_lens.report.study.direct_effect", interrupted)
    assert demo("--image", image, "--question", QUESTION, "--top", 3) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "vlm-lens demo: interrupted"


def test_models_lists_every_record_part_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    table, note = out.split("\n\n")
    header, *lines = table.splitlines()
    starts = [header.index(column) for column in COLUMNS]
    cells = [
        tuple(line[start:stop].strip() for start, stop in pairwise([*starts, None]))
        for line in lines
    ]
    assert cells == support_rows()
    assert {cell[0] for cell in cells} == set(supported_architectures())
    assert all(line[start - 1 : start] in (" ", "") for line in lines for start in starts)
    assert all(model_type in note for model_type in BLOCKS)
    assert max(map(len, note.splitlines())) <= 100


def test_models_says_which_part_is_which(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models"])
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("Gemma3ForCond")
    ]
    assert line.split() == [
        *("Gemma3ForConditionalGeneration", "siglip_vision_model", "*", "-", "norm,", "linear"),
        *("gemma3_text", "pooled"),
    ]


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--help"], 0, "demo"),
        (["demo", "--help"], 0, "--question"),
        (["--help"], 0, "list the models that are supported"),
        (["models", "more"], 2, "unrecognized arguments: more"),
        (["--version"], 0, "vlm-lens "),
        ([], 2, "required: COMMAND"),
        (["dmeo"], 2, "invalid choice: 'dmeo'"),
        (["demo", "--top", "many"], 2, "invalid int value: 'many'"),
    ],
)
def test_help_and_usage(
    argv: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == code
    assert said in (err if code else out)


def test_runs_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["vlm_lens", "demo", "--out", "no/such/folder.html"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("vlm_lens", run_name="__main__")
    assert stop.value.code == 2
    assert refusal(capsys).endswith("there is no folder 'no/such'")


@pytest.mark.parametrize("was_on", [True, False])
def test_garbage_is_collected_again_after_imports(was_on: bool) -> None:
    def broken() -> None:
        with importing():
            assert not gc.isenabled()
            raise ImportError

    try:
        (gc.enable if was_on else gc.disable)()
        with pytest.raises(ImportError):
            broken()
        assert gc.isenabled() == was_on
    finally:
        gc.enable()

"""``vlm-lens explore``: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_critical import result
from tests.handing_out import Asked, hand_out
from tests.page import Page, assert_self_contained
from tests.tiny import Tiny, picture
from vlm_lens import HookedVLM
from vlm_lens.cli import main

QUESTION = "what color is the circle ?"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, llava: Tiny) -> Asked:
    """Loads the tiny model whatever is asked for, and records what that was."""
    return hand_out(monkeypatch, llava.model)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    picture(0).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def run(*options: object) -> int:
    return main(["explore", *map(str, options)])


def data_of(path: Path) -> dict:
    page = Page(path.read_text(encoding="utf-8"))
    assert_self_contained(page)
    return json.loads(next(text for kind, text in page.scripts if kind == "application/json"))


def test_writes_a_page(
    image: Path, loaded: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = tmp_path / "page.html", tmp_path / "can"
    found = result()
    found.save(results)
    options = ("--names", "blocks.*.mlp.hook_post", "--neurons", 9, "--neuron")
    given = ("--image", image, "--question", QUESTION, "--answer", "red", "--results", results)
    assert run(*given, *options, "blocks.2.mlp.hook_post[3]", "--out", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    data = data_of(out)
    assert data["about"]["answer"] == "red"
    assert data["about"]["prompt"].endswith(QUESTION)
    assert data["shown"] == ["blocks.2.mlp.hook_post", 3]
    assert [len(layer["indices"]) for layer in data["layers"].values()] == [9, 9, 9]
    assert [name for name, _ in loaded] == ["shapes-llava"]


@pytest.mark.full
def test_the_bundled_image_is_explored_by_default(
    shapes: HookedVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HookedVLM, "from_pretrained", lambda *_, **__: shapes)
    assert run("--neurons", 40) == 0
    data = data_of(tmp_path / "explorer.html")
    assert (data["about"]["answer"], data["about"]["own"]) == ("blue", True)
    assert len(data["layers"]) == 4 + 1 + 6


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--image": "missing.png"}, "'missing.png' does not exist"),
        ({"--out": "missing/page.html"}, "there is no folder 'missing'"),
        ({"--neurons": "0"}, "expected --neurons of at least 1, got 0"),
        ({"--results": "."}, "there is no result in '.'"),
        ({"--device": "nowhere"}, "the device 'nowhere' does not work here"),
        ({"--question": " "}, "empty"),
        ({"--answer": ""}, "at least one token"),
        ({"--neuron": "7"}, "cannot read '7' as a neuron"),
        ({"--neuron": "blocks.9.mlp.hook_post[7]"}, "no hook point 'blocks.9.mlp.hook_post'"),
        ({"--neuron": "blocks.0.mlp.hook_post[64]"}, "has 0 to 63"),
        ({"--names": "nowhere"}, "'nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    image: Path,
    loaded: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"--image": str(image), "--question": QUESTION, "--answer": "red", **changes}
    assert run(*(part for pair in given.items() for part in pair)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("vlm-lens explore: error: ")
    assert message in last
    assert [path.name for path in tmp_path.iterdir()] == ["scene.png"]

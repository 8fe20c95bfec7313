"""``vlm-lens explain``: what it writes, says and refuses, what it sends, and how it goes on."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.analyses.chat_server import Reply, Server, chat_server
from tests.analyses.planted_modality import PLANTS, planted
from tests.handing_out import Asked, hand_out
from tests.page import Page, assert_self_contained
from tests.tiny import Tiny, picture
from vlm_lens import HookedVLM, NeuronSet, load_samples
from vlm_lens.analyses.explain import Explanations
from vlm_lens.cli import main
from vlm_lens.cli.progress import Bar
from vlm_lens.neurons import Neuron
from vlm_lens.statistics import collect

FEW = ("--n", 12, "--exemplars", 2, "--random-exemplars", 2, "--max-new-tokens", 3)
SOME = [f"blocks.{layer}.mlp.hook_act[{40 + layer}]" for layer in range(3)]
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, shapes: HookedVLM) -> Asked:
    """Hands out the bundled model whatever is asked for, and records what that was."""
    return hand_out(monkeypatch, shapes)


def run(*options: object) -> int:
    return main(["explain", *map(str, options)])


def refused(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The one line that a refused run says, on stderr, after its progress."""
    assert run(*options) == 2
    out, err = capsys.readouterr()
    *progress, last = err.splitlines()
    assert out == ""
    assert all(line.startswith("[") for line in progress), err
    assert last.startswith("vlm-lens explain: error: ")
    return last


# What it writes and says --------------------------------------------------------------------------


@pytest.mark.full
def test_planted_neurons_are_explained_on_the_page(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plants = planted(n=24)
    monkeypatch.setattr(HookedVLM, "from_pretrained", lambda *_, **__: plants.model)
    monkeypatch.setattr("vlm_lens.cli.explain.read_samples", lambda *_, **__: plants.samples)
    names = [str(getattr(plants, kind)) for kind in PLANTS]
    assert run("--neurons", *names, *SOME, "--n", 24, "--out", out) == 0
    found = Explanations.load(out)
    said, _ = capsys.readouterr()
    shown = Page((out / "report.html").read_text(encoding="utf-8"))
    assert said.splitlines()[-1] == str(out / "report.html")
    for name in names:
        explanation = found[Neuron.parse(name)].explanation.text
        assert "red" in explanation
        assert explanation in shown.text
        assert explanation[:40] in said
        assert found[Neuron.parse(name)].score.pearson > 0.6
    assert_self_contained(shown)


def test_the_same_command_shows_what_is_there(
    loaded: list, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("--neurons", *SOME, *FEW, "--out", out) == 0
    first, html = capsys.readouterr().out, (out / "report.html").read_text()
    monkeypatch.setattr("vlm_lens.cli.explain._explained", None)  # is not called again
    (out / "report.html").unlink()
    assert run("--neurons", *SOME, *FEW, "--out", out) == 0
    assert capsys.readouterr().out == first
    assert (out / "report.html").read_text() == html
    assert "differs in" in refused(capsys, "--neurons", *SOME[:2], *FEW, "--out", out)
    assert "differs in named" in refused(capsys, *("--neurons", *SOME), *FEW, "--out", _set(out))
    assert loaded[0] == ("shapes-llava", {"device": None})


def _set(out: Path) -> Path:
    """The folder, in whose notes the neurons have other names."""
    content = json.loads((out / "run.json").read_text())
    content["fields"]["named"] = "other neurons"
    (out / "run.json").write_text(json.dumps(content))
    return out


@pytest.mark.full
def test_top_neurons_are_those_with_the_largest_activations(
    loaded: list, shapes: HookedVLM, out: Path
) -> None:
    assert (
        run("--top", 4, "--layer", 1, 3, "--component", "language_model", *FEW, "--out", out) == 0
    )
    samples = load_samples("shapes-llava", n=12)
    names = [f"blocks.{layer}.mlp.hook_act" for layer in (1, 3)]
    found = collect(shapes, samples, sites=names, token_types=["image+text"], top_k=0)
    largest = {name: found.max[name]["image+text"] for name in names}
    assert list(Explanations.load(out)) == list(NeuronSet.from_scores(largest, k=4))
    assert loaded == [("shapes-llava", {"device": None})]


@pytest.mark.full
def test_random_neurons_depend_on_the_seed_alone(loaded: list, tmp_path: Path) -> None:
    found = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        given = ("--random", 5, "--seed", seed, "--component", "projector")
        assert run(*given, *FEW, "--out", tmp_path / name) == 0
        some = Explanations.load(tmp_path / name)
        found[name] = {*some, *some.skipped}
    assert found["a"] == found["b"] != found["c"]
    assert [neuron.component for neuron in found["a"]] == ["projector"] * 5
    assert loaded


@pytest.mark.full
def test_neurons_come_from_a_file(loaded: list, tmp_path: Path, out: Path) -> None:
    NeuronSet(map(Neuron.parse, SOME)).save(tmp_path / "some.json")
    assert run("--set", tmp_path / "some.json", *FEW, "--out", out) == 0
    assert [str(neuron) for neuron in Explanations.load(out)] == SOME
    assert loaded


def test_texts_alone_are_explained_by_their_words(loaded: list, tmp_path: Path, out: Path) -> None:
    lines = (f"the {color} circle is left of the square . " for color in ("red", "blue", "green"))
    (tmp_path / "text.txt").write_text("".join(lines) * 40)
    given = ("--text", tmp_path / "text.txt", "--words", 20)
    assert run(*given, "--neurons", *SOME, *FEW, "--out", out) == 0
    found = Explanations.load(out)
    assert found.parameters["answers"] is None
    assert all("patches" not in one.explanation.text for one in found.neurons)
    assert loaded


@pytest.mark.full
def test_ctrl_c_ends_with_one_line_and_the_same_command_goes_on(
    loaded: list, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bar, "scored", stop)
        assert run("--neurons", *SOME, *FEW, "--out", out) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err.splitlines()[-1]
    assert (out / "checkpoint" / "explained_from").is_dir()
    assert run("--neurons", *SOME, *FEW, "--out", out) == 0
    assert len(Explanations.load(out)) == 3
    assert loaded


# What it refuses ----------------------------------------------------------------------------------

CHAT = ("--explainer", "chat", "--endpoint", "http://localhost:1/v1", "--chat-model", "tiny")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n", 1], "--n of at least 2"),
        (["--top", 0], "--top of at least 1"),
        (["--exemplars", 0], "--exemplars of at least 1"),
        (["--held-out", 1], "--held-out between 0 and 1"),
        (["--alpha", 0], "--alpha between 0 and 1"),
        (["--shuffles", -1], "--shuffles of at least 0"),
        (["--neurons", "blocks.0"], "cannot read 'blocks.0' as a neuron"),
        (["--neurons", SOME[0], "--layer", 1], "--layer is about --top and --random"),
        (["--set", "missing.json"], "missing.json"),
        (["--explainer", "chat"], "needs --endpoint and --chat-model"),
        (["--explainer", "chat", "--endpoint", "ftp://x"], "needs --chat-model"),
        ([*CHAT, "--endpoint", "ftp://x"], "address of a chat endpoint"),
        ([*CHAT, "--endpoint", "http://me:secret@x/v1"], "without user, password"),
        ([*CHAT, "--key-variable", "sk-secret"], "not the key itself"),
        ([*CHAT, "--timeout", 0], "timeout=0"),
        ([*CHAT, "--endpoint", "http://x/\nv1"], "without white space"),
        ([*CHAT, "--prices", -1, 2], "prices of at least 0"),
        ([*CHAT, "--simulator", "concepts"], "concepts cannot be predicted from"),
        (["--explainer", "model"], "add --clip NAME, or --simulator chat"),
        (["--endpoint", "http://localhost:1/v1"], "--endpoint has no meaning here"),
        (["--simulator", "clip"], "needs --clip NAME"),
        ([*CHAT, "--simulator", "chat", "--clip", "x"], "--clip has no meaning"),
        (["--explainer-model", "x"], "--explainer-model has no meaning"),
        (["--shown", 0], "--shown of at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_model_is_loaded(
    loaded: list,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[object],
    message: str,
) -> None:
    said = refused(capsys, *options, "--out", out)
    assert message in said
    assert "secret" not in said.replace("password", "")
    assert loaded == []
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--neurons", "blocks.9.mlp.hook_act[0]"], "blocks.9.mlp.hook_act"),
        (["--neurons", "blocks.0.mlp.hook_act[99999]"], "99999"),
        (["--neurons", "blocks.0.attn.hook_pattern[0]"], "no neuron dimension"),
        (["--layer", 6, "--component", "language_model"], "no layer 6"),
        (["--component", "nowhere"], "there is no component 'nowhere'"),
        (["--random", 100_000], "expected at most 4,480 neurons"),
        (["--clip", "no/such-clip"], "--clip no/such-clip cannot be loaded"),
    ],
)
def test_what_the_model_does_not_have_is_refused_in_one_line(
    loaded: list,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[object],
    message: str,
) -> None:
    assert message in refused(capsys, *options, *FEW, "--out", out)
    assert loaded
    assert not (out / "explanations.json").exists()


# A chat endpoint ----------------------------------------------------------------------------------


def answer(request: dict) -> Reply:
    """Explains with a hostile text, or predicts numbers that depend on what is asked."""
    parts = request["messages"][1]["content"]
    said = " ".join(part["text"] for part in parts if part["type"] == "text")
    if "Reply with a JSON object" not in said:
        return Reply(content=f"{ATTACK} {len(said)}")
    rng = np.random.default_rng(len(said))
    reply = {"image 1": rng.integers(0, 10, (8, 8)).tolist()}
    if '"words": a list of' in said:
        n = int(said.split('"words": a list of ')[1].split()[0])
        reply["words"] = rng.integers(0, 10, n).tolist()
    return Reply(content=json.dumps(reply))


def by_chat(server: Server, *, out: Path) -> list[object]:
    few = [*FEW, "--n", 6, "--exemplars", 1, "--random-exemplars", 1, "--retries", 0]
    asked = ["--explainer", "chat", "--endpoint", server.url, "--chat-model", "tiny"]
    return ["--neurons", *SOME, *few, *asked, "--shuffles", 1, "--out", out]


@pytest.fixture
def server():
    with chat_server() as found:
        found.otherwise = answer
        yield found


def test_nothing_is_sent_before_the_user_agrees_to_the_cost(
    loaded: list, server: Server, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*by_chat(server, out=out), "--prices", 1, 2]
    assert run(*command) == 2
    *_, told, last = capsys.readouterr().err.splitlines()
    assert f"about to be sent to {server.url}: requests: " in told
    assert "price at most" in told
    assert last.endswith("nothing was sent: add --yes if all of that may be")
    assert server.requests == []
    assert loaded


@pytest.mark.full
@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", 2), ("", 2)])
def test_at_a_terminal_it_asks(
    loaded: list,
    server: Server,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    code: int,
) -> None:
    stdin = io.StringIO(typed)
    monkeypatch.setattr(stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run(*by_chat(server, out=out)) == code
    assert bool(server.requests) == (code == 0)
    assert loaded


@pytest.mark.full
def test_replies_reach_the_page_as_text_and_the_key_reaches_no_file(
    loaded: list,
    server: Server,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MY_KEY", "very-secret")
    assert run(*by_chat(server, out=out), "--key-variable", "MY_KEY", "--yes") == 0
    assert all(headers["authorization"] == "Bearer very-secret" for headers in server.headers)
    shown = Page((out / "report.html").read_text(encoding="utf-8"))
    assert_self_contained(shown)
    assert shown.count("script") == 0
    assert ATTACK in shown.text
    found = Explanations.load(out)
    assert 0 < len(server.requests) <= found.parameters["cost"]["requests"]
    for path in out.rglob("*"):
        assert path.is_dir() or b"very-secret" not in path.read_bytes(), path
    assert "very-secret" not in "".join(capsys.readouterr())
    assert loaded


@pytest.mark.full
def test_a_failing_server_ends_the_run_and_the_same_command_goes_on(
    loaded: list, server: Server, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*by_chat(server, out=out), "--yes"]
    asked: list[int] = []

    def fail_later(request: dict) -> Reply:
        asked.append(1)
        return answer(request) if len(asked) <= 4 else Reply(status=500, body=b"{}")

    server.otherwise = fail_later
    last = refused(capsys, *command)
    assert "refuses requests with status 500" in last
    assert f"The replies so far are in '{out / 'replies'}': the same command goes on" in last
    assert len(list((out / "replies").glob("*.json"))) == 4
    assert not (out / "explanations.json").exists()
    server.otherwise = answer
    before = [json.dumps(request) for request in server.requests[:4]]
    assert run(*command) == 0
    later = {json.dumps(request) for request in server.requests[5:]}
    assert not later & set(before)  # nothing is paid twice
    assert len(Explanations.load(out)) == 3
    n = len(server.requests)
    assert run(*command) == 0
    assert len(server.requests) == n
    assert loaded


RUBBISH = [
    Reply(body=b"<html>down</html>", headers={"Content-Type": "text/html"}),
    Reply(body=b""),
    Reply(content=None),
]
"""A page, nothing, and a model that is silent; `test_chat` has more."""


@pytest.mark.full
def test_rubbish_is_an_error_and_is_asked_for_again(
    loaded: list, server: Server, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*by_chat(server, out=out), "--yes"]
    for rubbish in RUBBISH:
        before = len(server.requests)
        server.otherwise = lambda _, rubbish=rubbish: rubbish
        last = refused(capsys, *command)
        assert "reply as a chat endpoint does" in last or "No reply could be used" in last
        assert "the same command goes on from there" in last
        assert len(server.requests) > before
        assert not (out / "explanations.json").exists()
    server.otherwise = answer
    assert run(*command) == 0
    assert len(Explanations.load(out)) == 3
    assert loaded


@pytest.mark.full
def test_what_had_no_reply_is_asked_again_and_nothing_else(
    loaded: list, server: Server, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*by_chat(server, out=out), "--yes"]
    asked: list[int] = []

    def refuse_first(request: dict) -> Reply:
        asked.append(1)
        return Reply(content=None) if len(asked) <= 2 else answer(request)

    server.otherwise = refuse_first
    assert run(*command) == 0
    assert "is asked again when the same is explained again" in capsys.readouterr().out
    assert len(Explanations.load(out)) == 2
    n = len(server.requests)
    server.otherwise = answer
    assert run(*command) == 0
    assert len(Explanations.load(out)) == 3
    later = [json.dumps(request) for request in server.requests[n:]]
    assert json.dumps(server.requests[0]) in later
    assert not {*later} & {json.dumps(request) for request in server.requests[2:n]}
    n = len(server.requests)
    assert run(*command) == 0
    assert len(server.requests) == n
    assert loaded


@pytest.mark.full
def test_options_of_the_connection_may_change(loaded: list, server: Server, out: Path) -> None:
    assert run(*by_chat(server, out=out)) == 2
    assert run(*by_chat(server, out=out), "--yes", "--timeout", 30) == 0
    assert len(Explanations.load(out)) == 3
    assert loaded


# Models here --------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_model_explains_and_clip_predicts(
    loaded: list, out: Path, tmp_path: Path, shapes: HookedVLM, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = _tiny_clip(tmp_path / "clip", shapes)
    ways = ("--explainer", "model", "--explainer-model", "another", "--shown", 1, "--clip", clip)
    assert run("--neurons", *SOME, *FEW, *ways, "--out", out) == 0
    found = Explanations.load(out)
    assert found.parameters["explainer"]["explainer"] == "model"
    assert found.parameters["simulator"]["model"] == str(clip)
    assert [name for name, _ in loaded] == ["shapes-llava", "another"]
    assert all(one.score.text is None for one in found.neurons)  # CLIP predicts patches alone
    assert "explained: mean score" in capsys.readouterr().out


def _tiny_clip(folder: Path, shapes: HookedVLM) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text = {**size, "num_attention_heads": 2, "vocab_size": len(shapes.tokenizer)}
    vision = {**size, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(images, shapes.tokenizer).save_pretrained(folder)
    return folder


def test_another_model_and_its_folder_of_images(
    llava: Tiny, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for i in range(6):
        picture(i).save(folder / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": "what color is the circle ?"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(HookedVLM, "from_pretrained", lambda *_, **__: llava.model)
    given = ("--model", "my/model", "--data", folder, "--random", 4, "--layer", 1)
    assert run(*given, *FEW, "--out", out) == 0
    shown = Page((out / "report.html").read_text(encoding="utf-8"))
    assert "my/model" in shown.text
    assert_self_contained(shown)

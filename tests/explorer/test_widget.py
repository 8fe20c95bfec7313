"""What the widget keeps in step with Python, and how it answers the browser."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.explorer.conftest import QUESTION
from tests.families.base import picture
from tests.tiny import Tiny
from vlm_lens.explorer import Explorer, explore
from vlm_lens.explorer.requests import Requests
from vlm_lens.neurons import Neuron, NeuronSet

NAME = "blocks.1.mlp.hook_post"


@pytest.fixture
def explorer(asked: Requests) -> Explorer:
    return Explorer(asked, start=Neuron(NAME, 5))


@pytest.fixture
def sent(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict, list]]:
    messages: list[tuple[dict, list]] = []
    monkeypatch.setattr(
        explorer, "send", lambda content, buffers=(): messages.append((content, list(buffers)))
    )
    return messages


def from_browser(explorer: Explorer, content: dict[str, Any]) -> None:
    explorer._handle_custom_msg(content, [])


def test_the_browsers_questions_are_answered_with_their_number(
    explorer: Explorer, sent: list[tuple[dict, list]], asked: Requests
) -> None:
    from_browser(explorer, {"id": "a:0", "kind": "neuron", "name": NAME, "index": 3})
    [(content, [buffer])] = sent
    assert content["id"] == "a:0"
    values = asked.layers[NAME].activations[:, 3]
    np.testing.assert_array_equal(np.frombuffer(buffer, "<f4"), values)


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({"kind": "neuron", "name": NAME, "index": 999}, "IndexError: there is no neuron 999"),
        ({"kind": "layer", "name": "nowhere"}, "KeyError: there is no hook point 'nowhere'"),
        ({"kind": "layer"}, "TypeError"),
        ({}, "ValueError: expected a request"),
    ],
)
def test_a_question_that_fails_is_answered_with_a_sentence(
    explorer: Explorer, sent: list[tuple[dict, list]], question: dict, sentence: str
) -> None:
    from_browser(explorer, {"id": "a:1", **question})
    [(content, buffers)] = sent
    assert content["id"] == "a:1"
    assert content["error"].startswith(sentence)
    assert buffers == []


def test_python_and_browser_choose_the_same_neuron(explorer: Explorer) -> None:
    seen: list[Neuron] = []
    explorer.on_neuron(seen.append)
    explorer.neuron = f"{NAME}[9]"
    assert explorer._shown == [NAME, 9]
    explorer.set_state({"_shown": [NAME, 11]})  # what the browser's message does
    assert explorer.neuron == Neuron(NAME, 11)
    assert seen == [Neuron(NAME, 9), Neuron(NAME, 11)]


def test_the_selection_is_a_neuron_set_both_ways(explorer: Explorer) -> None:
    assert explorer.selection == NeuronSet()
    explorer.set_state({"_kept": [[NAME, 7], ["projector.hook_out", 2]]})
    assert list(explorer.selection) == [Neuron(NAME, 7), Neuron("projector.hook_out", 2)]
    assert explorer.selection.sizes == {NAME: 64, "projector.hook_out": 32}
    explorer.selection = explorer.selection.filter(component="projector")
    assert explorer._kept == [["projector.hook_out", 2]]


@pytest.mark.parametrize(
    ("neuron", "error", "message"),
    [
        (Neuron("nowhere", 0), KeyError, "no hook point 'nowhere'"),
        (Neuron(NAME, 64), IndexError, "has 0 to 63"),
    ],
)
def test_neurons_that_are_not_there_are_refused(
    explorer: Explorer, asked: Requests, neuron: Neuron, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        explorer.neuron = neuron
    with pytest.raises(error, match=message):
        explorer.selection = [neuron]
    with pytest.raises(error, match=message):
        Explorer(asked, start=neuron)
    assert explorer.neuron == Neuron(NAME, 5)


def test_front_ends_without_widgets_get_a_page(explorer: Explorer) -> None:
    data, _ = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/html"].startswith("<iframe srcdoc=")
    assert len(data["text/html"]) < 200_000


def test_explore_takes_a_neuron_by_its_text(llava: Tiny) -> None:
    inputs = llava.model.prepare(images=picture(0), text=QUESTION)
    explorer = explore(llava.model, inputs, answer="red", neuron=f"{NAME}[3]", effects=False)
    assert explorer.neuron == Neuron(NAME, 3)
    with pytest.raises(ValueError, match="cannot read"):
        explore(llava.model, inputs, answer="red", neuron="3", effects=False)


def test_importing_the_library_imports_no_widgets() -> None:
    code = (
        "import sys, vlm_lens, vlm_lens.explorer, vlm_lens.cli.explore; "
        "print([name for name in ('anywidget', 'ipywidgets', 'torch') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_bug_is_told_and_keeps_its_traceback(
    explorer: Explorer, sent: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(explorer, "_requests", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        explorer._on_message(None, {"id": 4}, [])
    assert sent == [({"id": 4, "error": "RuntimeError: out of memory"}, [])]

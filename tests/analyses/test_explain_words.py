"""Explainers in words: what a chat endpoint or a model on this machine is shown, and says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from tests.analyses.chat_server import Reply, chat_server
from tests.analyses.test_exemplars import text_view
from tests.analyses.test_simulate import mixed_view
from tests.tiny import Tiny, build_tiny, picture
from vlm_lens import Neuron
from vlm_lens.analyses.chat import Chat, ReplyError
from vlm_lens.analyses.exemplars import Exemplar, Exemplars
from vlm_lens.analyses.explain import by_chat, by_model
from vlm_lens.analyses.explaining.asking import (
    EXPLAIN,
    explain_prompt,
    heat_picture,
    marked_text,
    read_explanation,
)
from vlm_lens.plots import style
from vlm_lens.shapes_llava.build import CHAT_TEMPLATE

NEURON = Neuron("blocks.1.mlp.hook_act", 0)


def some(n: int = 3) -> Exemplars:
    """Images with words, of which one patch and one word are active."""
    top = []
    for i in range(n):
        view = mixed_view(picture(i), "what", " color", " <b>")
        values = np.zeros(19)
        values[5], values[17] = 10.0, 6.4
        top.append(Exemplar(view, values))
    return Exemplars(NEURON, tuple(top), (), 1.0)


# What is shown ------------------------------------------------------------------------------------


def test_a_prompt_shows_each_sample_with_its_picture_and_its_words():
    prompt = explain_prompt(some(2).top)
    assert prompt.instruction == EXPLAIN
    kinds = [part if isinstance(part, str) else "picture" for part in prompt.parts]
    text = "Text: what color [6] <b>"
    assert kinds == ["Sample 1:", "picture", text, "Sample 2:", "picture", text]


def test_a_picture_stands_beside_its_heat_map():
    [exemplar] = some(1).top
    found = heat_picture(exemplar, 0)
    assert found is not None
    assert found.size == (512, 256)  # 32 pixels, eight times as large, twice
    original, heat = (np.asarray(found.crop(box)) for box in ((0, 0, 256, 256), (256, 0, 512, 256)))
    np.testing.assert_array_equal(original[::8, ::8], np.asarray(picture(0)))
    grey = np.asarray(style.backdrop(picture(0)).convert("RGB"))
    hot = np.zeros((32, 32), dtype=bool)
    hot[8:16, 8:16] = True
    np.testing.assert_array_equal(heat[::8, ::8][~hot], grey[~hot])
    red, _, blue = heat[::8, ::8][hot].astype(float).mean(0)
    assert red > blue + 80


def test_without_its_image_a_sample_is_shown_by_its_words():
    [exemplar] = some(1).top
    exemplar.view.sample.images.clear()
    assert heat_picture(exemplar, 0) is None
    assert explain_prompt([exemplar]).images == []


def test_a_long_text_is_shown_around_its_most_active_word():
    words = [f"w{i}" for i in range(100)]
    values = np.zeros(100)
    values[70], values[20] = 9.0, 3.0
    said = marked_text(Exemplar(text_view(*words), values), context=10).split()
    assert said == [f"w{i}" for i in range(65, 71)] + ["[9]"] + [f"w{i}" for i in range(71, 75)]
    assert marked_text(Exemplar(text_view(*words[:5]), values[:5]), context=10) == "w0 w1 w2 w3 w4"


# A chat endpoint ----------------------------------------------------------------------------------


def test_a_chat_explains_from_the_samples_it_is_shown():
    with chat_server(Reply(content=' "Red things,\n and the word red." ')) as server:
        explainer = by_chat(Chat(server.url, "tiny", key="secret"), shown=2)
        found = explainer(some(3))
    assert found.text == "Red things, and the word red."
    assert found.terms == ()
    [request] = server.requests
    parts = request["messages"][1]["content"]
    assert sum(part["type"] == "image_url" for part in parts) == 2
    assert explainer.parameters["model"] == "tiny"
    assert "secret" not in json.dumps(explainer.parameters)


def test_the_cost_of_explaining_is_a_request_a_neuron():
    explainer = by_chat(Chat("http://localhost:1/v1", "tiny"), shown=2)
    found = explainer.cost([some(3), some(1)])
    assert (found.requests, found.images) == (2, 3)
    assert found.input_tokens > 3 * 255


def test_a_reply_without_words_is_useless():
    with pytest.raises(ReplyError, match="says nothing"):
        read_explanation(' "" ')


def test_a_rambling_reply_is_cut():
    assert len(read_explanation("red " * 1000).text) == 300


# A model on this machine --------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
def test_a_model_on_this_machine_is_asked_in_the_same_way(
    monkeypatch: pytest.MonkeyPatch, template: str | None
):
    tiny, seen = build_tiny("clip-llama"), []
    tiny.processor.chat_template = template
    generate = type(tiny.model).generate

    def watch(self, inputs, **options):
        seen.append(inputs)
        generate(self, inputs, **options)  # it runs; what random weights say is no word
        return "red circle"

    monkeypatch.setattr(type(tiny.model), "generate", watch)
    explainer = by_model(tiny.model, shown=2, instruction="what is the color ?", max_new_tokens=3)
    assert explainer(some(3)).text == "red circle"
    [inputs] = seen
    assert [image.size for image in inputs.images[0]] == [(512, 256)] * 2
    text = inputs.texts[0]
    assert text.count("<image>") == 2
    first, second = text.index("Sample 1"), text.index("Sample 2")
    in_places = text.index("what is the color ?") < first < text.index("<image>") < second
    assert in_places == (template is not None)


def test_a_model_explains_texts_without_images(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(llava.model), "generate", lambda *_, **__: " a  word ")
    view = text_view("what", "color")
    words = Exemplars(NEURON, (Exemplar(view, np.array([0.0, 10.0])),), (), 1.0)
    explainer = by_model(llava.model, instruction="what is it ?", max_new_tokens=2)
    assert explainer(words).text == "a word"


@pytest.mark.parametrize("wrong", [{"shown": 0}, {"context": 0}])
def test_numbers_out_of_range_are_refused(llava: Tiny, wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        by_model(llava.model, **wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        by_chat(Chat("http://localhost:1/v1", "tiny"), **wrong)


def test_a_large_picture_stays_as_it_is():
    view = mixed_view(Image.new("RGB", (640, 480)))
    found = heat_picture(Exemplar(view, np.zeros(16)), 0)
    assert found is not None
    assert found.size == (1280, 480)

"""What the page is told equals the model's numbers; what makes no sense is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.explorer.conftest import QUESTION
from tests.families.base import picture
from tests.tiny import Tiny
from vlm_lens.explorer.requests import MOST_ACTIVE, Requests
from vlm_lens.explorer.subject import make_subject
from vlm_lens.neurons import Neuron

NAME = "blocks.1.mlp.hook_post"


def floats(buffer: bytes) -> np.ndarray:
    return np.frombuffer(buffer, "<f4")


def test_about_says_what_each_position_is(asked: Requests) -> None:
    about, buffers = asked({"kind": "about"})
    token_map = asked.subject.token_map
    json.dumps(about, allow_nan=False)
    assert buffers == []
    assert about["prompt"].endswith(QUESTION)
    assert about["answer"] == "red square"
    assert not about["own"]
    [image] = about["images"]
    assert (image["width"], image["height"]) == (50, 34)
    assert image["uri"].startswith("data:image/png;base64,")
    point = next(point for point in about["points"] if point["name"] == NAME)
    assert (point["component"], point["layer"], point["site"]) == (
        "language_model",
        1,
        "mlp.hook_post",
    )
    assert point["n"] == 64
    space = about["spaces"][point["space"]]
    assert space["labels"] == token_map.tokens
    assert space["modality"] == "".join(kind[0] for kind in token_map.modality)
    assert space["role"] == "p" * (len(token_map) - 2) + "aa"
    for pos, box in enumerate(space["box"]):
        is_patch = token_map.modality[pos] == "image"
        assert (box is not None) == is_patch
        if is_patch:
            assert box == pytest.approx(token_map.box(pos), abs=0.01)
    assert [about["points"][i]["component"] for i in (0, -1)] == [
        "vision_encoder",
        "language_model",
    ]


def test_a_neurons_values_are_the_caches(asked: Requests) -> None:
    found, [buffer] = asked({"kind": "neuron", "name": NAME, "index": 7})
    _, cache = asked.subject.model.run_with_cache(asked.subject.arguments, names_filter=NAME)
    expected = cache[NAME][0, :, 7].detach().numpy()
    np.testing.assert_array_equal(floats(buffer), expected)
    plain = [i for i, kind in enumerate(asked.subject.token_map.modality) if kind != "special"]
    assert found["limit"] == pytest.approx(np.abs(expected[plain]).max())
    assert found["facts"] == found["cards"] == []


def test_the_most_active_neurons_at_an_entry(asked: Requests) -> None:
    found, [buffer] = asked({"kind": "position", "name": NAME, "entry": 4})
    values = asked.layers[NAME].activations[4]
    order = sorted(range(64), key=lambda i: (-values[i], i))[:MOST_ACTIVE]
    assert found["neurons"] == order
    np.testing.assert_array_equal(floats(buffer), values[order])


def test_ablating_tells_answers_and_logits(asked: Requests) -> None:
    subject, chosen = asked.subject, [[NAME, i] for i in range(40)]
    found, buffers = asked({"kind": "ablate", "neurons": chosen})
    model, place = subject.model, subject.n_before - 1
    hook = (NAME, lambda tensor, hook: tensor * (torch.arange(64) >= 40))
    with torch.no_grad():
        clean = model(subject.prompt)[0, place]
        without = model.run_with_hooks(subject.prompt, fwd_hooks=[hook])[0, place]
        with model.hooks([hook]):
            answer = model.generate(subject.prompt, max_new_tokens=3)
        expected = model.generate(subject.prompt, max_new_tokens=3)
    assert buffers == []
    assert (found["clean"], found["ablated"]) == (expected, answer)
    ids = {model.tokenizer.decode([i]): i for i in range(len(clean))}
    shares = [change["clean"] for change in found["tokens"]]
    assert shares == sorted(shares, reverse=True)
    for change in found["tokens"]:
        i = ids[change["token"]]
        assert change["clean"] == pytest.approx(float(clean.softmax(-1)[i]), abs=1e-5)
        assert change["ablated"] == pytest.approx(float(without.softmax(-1)[i]), abs=1e-5)
        assert change["logit_difference"] == pytest.approx(float(without[i] - clean[i]), abs=1e-4)
    best = {model.tokenizer.decode([int(logits.argmax())]) for logits in (clean, without)}
    assert best <= {change["token"] for change in found["tokens"]}


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"kind": "delete"}, ValueError, "expected a request of"),
        ({"kind": "layer", "name": "nowhere"}, KeyError, "no hook point 'nowhere'"),
        ({"kind": "neuron", "name": NAME, "index": 64}, IndexError, "there is no neuron 64"),
        ({"kind": "neuron", "name": NAME, "index": -1}, IndexError, "there is no neuron -1"),
        ({"kind": "position", "name": NAME, "entry": 99}, IndexError, "there is no entry 99"),
        ({"kind": "ablate", "neurons": []}, ValueError, "at least one neuron"),
        ({"kind": "ablate", "neurons": [[NAME, 64]]}, IndexError, "64"),
        ({"kind": "ablate", "neurons": [["nowhere", 0]]}, KeyError, "nowhere"),
    ],
)
def test_what_makes_no_sense_is_refused(
    asked: Requests, request_: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        asked(request_)


def test_the_first_neuron_helps_the_answer_most(asked: Requests) -> None:
    effect = asked.layers[NAME].effect
    assert effect is not None
    assert asked.first() == Neuron(NAME, int(effect.argmax()))


# The subject ----------------------------------------------------------------------------------


def test_the_answer_is_the_models_own_unless_given(llava: Tiny) -> None:
    inputs = llava.model.prepare(images=picture(0), text=QUESTION)
    subject = make_subject(llava.model, inputs, max_new_tokens=4)
    assert subject.is_own
    assert subject.answer == llava.model.generate(inputs, max_new_tokens=4)
    assert subject.token_map.role.count("answer") == len(subject.answer_tokens) <= 4
    given = make_subject(llava.model, inputs, answer="red square")
    assert given.answer == "red square"
    assert given.token_map.tokens[-2:] == ["red", "square"]


def test_inputs_that_cannot_be_explored_are_refused(llava: Tiny, unchecked: None) -> None:
    model = llava.model
    one = model.prepare(images=picture(0), text=QUESTION)
    with pytest.raises(TypeError, match=r"what model\.prepare\(\.\.\.\) returns, got str"):
        make_subject(model, QUESTION)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a batch of 2"):
        make_subject(model, model.prepare(text=[QUESTION, QUESTION]))
    with pytest.raises(ValueError, match="without an answer"):
        make_subject(model, model.prepare(text=QUESTION, answer="red"))
    with pytest.raises(ValueError, match="at least one token"):
        make_subject(model, one, answer="")
    with pytest.raises(ValueError, match="max_new_tokens of at least 1"):
        make_subject(model, one, max_new_tokens=0)


def test_a_prompt_without_an_image_offers_the_language_model(llava: Tiny) -> None:
    from vlm_lens.explorer import explore

    explorer = explore(llava.model, llava.model.prepare(text=QUESTION), answer="red")
    about, _ = explorer._requests({"kind": "about"})
    assert about["images"] == []
    assert {point["component"] for point in about["points"]} == {"language_model"}
    with pytest.raises(ValueError, match="need an image"):
        explore(llava.model, llava.model.prepare(text=QUESTION), answer="red", names="projector.*")

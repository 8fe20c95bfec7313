"""Simulators predict from an explanation and a sample alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.analyses.chat_server import Reply, chat_server
from tests.analyses.test_concepts import DOG, image_view, word
from tests.analyses.test_exemplars import text_view
from tests.tiny import build_tokenizer, picture
from vlm_lens import Sample
from vlm_lens.analyses import simulate
from vlm_lens.analyses.chat import Chat, ReplyError
from vlm_lens.analyses.exemplars import SampleView
from vlm_lens.analyses.explaining.asking import read_prediction, simulate_prompt
from vlm_lens.analyses.explaining.concept import OBJECT, Concept
from vlm_lens.analyses.explaining.explanation import Explanation, Term

DOGS = Concept("image", (("category", "dog"),))


def mixed_view(image: Image.Image, *tokens: str, side: int = 4) -> SampleView:
    """An image in side x side patches, and words behind it."""
    width, height = image.size
    xs, ys = np.linspace(0, width, side + 1), np.linspace(0, height, side + 1)
    boxes = [(xs[c], ys[r], xs[c + 1], ys[r + 1]) for r in range(side) for c in range(side)]
    n, words = side * side, len(tokens)
    return SampleView(
        number=0,
        sample=Sample([image], " ".join(tokens)),
        kinds=("image",) * n + ("text",) * words,
        tokens=("<image>",) * n + tokens,
        roles=("prompt",) * (n + words),
        image_index=np.array([0] * n + [-1] * words),
        boxes=np.array([*boxes, *[(np.nan,) * 4] * words]),
    )


# Concepts -----------------------------------------------------------------------------------------


def test_concepts_predict_their_level_where_they_hold():
    terms = (Term(DOGS, 6.0), Term(OBJECT, 2.0), Term(word("cat"), 8.0))
    explanation = Explanation("dogs", terms, {"image": 0.5, "text": 0.1})
    view = image_view(DOG, {"box": (16, 16, 24, 24), "category": "cat"})
    found = simulate.by_concepts()(explanation, view).reshape(8, 8)
    expected = np.full((8, 8), 0.5)
    expected[:2, :2], expected[4:6, 4:6] = 6.0, 2.0  # of two, the higher one
    np.testing.assert_array_equal(found, expected)
    found = simulate.by_concepts()(explanation, text_view("a", " Cat"))
    assert found.tolist() == [0.1, 8.0]


def test_the_order_of_terms_makes_no_difference():
    terms = [Term(DOGS, 6.0), Term(OBJECT, 2.0)]
    one, other = (
        simulate.by_concepts()(Explanation("dogs", tuple(some)), image_view(DOG))
        for some in (terms, terms[::-1])
    )
    np.testing.assert_array_equal(one, other)


def test_concepts_cannot_predict_from_words_alone():
    with pytest.raises(ValueError, match=r"simulate\.by_clip or simulate\.by_chat"):
        simulate.by_concepts()(Explanation("dogs"), image_view())


def test_no_explanation_predicts_nothing_anywhere():
    assert not simulate.by_concepts()(Explanation(""), image_view(DOG)).any()


# CLIP ---------------------------------------------------------------------------------------------


def build_clip(*, crop: int = 32) -> tuple[Any, Any]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = CLIPConfig(
        text_config={**sizes, "num_attention_heads": 4, "vocab_size": 22, "eos_token_id": 2},
        vision_config={**sizes, "num_attention_heads": 4, "image_size": crop, "patch_size": 8},
        projection_dim=24,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": crop}, crop_size={"height": crop, "width": crop}
    )
    return model, CLIPProcessor(image_processor=images, tokenizer=build_tokenizer())


@torch.no_grad()
def by_hand(model: Any, processor: Any, text: str, image: Image.Image) -> np.ndarray:
    """The cosine of each of CLIP's patches with a text."""
    tokens = processor.tokenizer(text, return_tensors="pt")
    wanted = model.text_projection(model.text_model(**tokens).pooler_output)[0]
    pixels = processor.image_processor(images=image, return_tensors="pt")["pixel_values"]
    hidden = model.vision_model(pixels).last_hidden_state[0, 1:]
    values = []
    for patch in hidden:
        here = model.visual_projection(model.vision_model.post_layernorm(patch))
        values.append(float(here @ wanted / here.norm() / wanted.norm()))
    return np.array(values)


def test_clip_predicts_the_cosine_of_patch_and_text():
    model, processor = build_clip()
    view = mixed_view(picture(0), "what", "color")
    found = simulate.by_clip(model, processor, prefix="a ")(Explanation("red circle"), view)
    expected = by_hand(model, processor, "a red circle", picture(0))
    np.testing.assert_allclose(found[:16], expected, atol=1e-5)
    assert np.ptp(expected) > 0.01
    assert np.isnan(found[16:]).all()


def test_patches_of_another_size_have_the_mean_over_those_of_clip():
    model, processor = build_clip()
    small = by_hand(model, processor, "red", picture(0)).reshape(4, 4)
    simulator = simulate.by_clip(model, processor, prefix="")
    large = simulator(Explanation("red"), mixed_view(picture(0), side=2)).reshape(2, 2)
    np.testing.assert_allclose(large[0, 1], small[:2, 2:].mean(), atol=1e-5)
    fine = simulator(Explanation("red"), mixed_view(picture(0), side=8)).reshape(8, 8)
    np.testing.assert_allclose(fine[5, 2], small[2, 1], atol=1e-5)


def test_patches_beyond_clips_crop_take_after_the_nearest():
    model, processor = build_clip()
    image = picture(3, size=(96, 32))  # of which CLIP sees the middle
    values = by_hand(model, processor, "red", image).reshape(4, 4)
    view = mixed_view(image, side=12)
    found = simulate.by_clip(model, processor, prefix="")(Explanation("red"), view).reshape(12, 12)
    rows = [int(row * 4 / 12) for row in range(12)]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0][[0, 3, 6, 9]], values[[0, 1, 2, 3], 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 5], values[rows, 1], atol=1e-5)


def test_clip_says_nothing_where_nothing_is_explained_or_shown():
    model, processor = build_clip()
    simulator = simulate.by_clip(model, processor)
    assert np.isnan(simulator(Explanation(""), mixed_view(picture(0)))).all()
    assert np.isnan(simulator(Explanation("red"), text_view("red"))).all()


def test_clip_needs_the_images():
    model, processor = build_clip()
    view = mixed_view(picture(0))
    view.sample.images.clear()
    with pytest.raises(ValueError, match="image 0 of sample 0 is not there"):
        simulate.by_clip(model, processor)(Explanation("red"), view)


def test_a_long_explanation_is_cut_to_clips_context():
    model, processor = build_clip()
    found = simulate.by_clip(model, processor)(Explanation("red " * 200), mixed_view(picture(0)))
    assert np.isfinite(found[:16]).all()


def test_another_model_is_no_clip():
    with pytest.raises(TypeError, match="expected a Hugging Face CLIPModel, got Linear"):
        simulate.by_clip(torch.nn.Linear(2, 2), None)


# A chat endpoint ----------------------------------------------------------------------------------


def as_json(grid: list, words: list | None = None) -> str:
    return json.dumps({"image 1": grid, **({} if words is None else {"words": words})})


def test_the_chat_is_asked_for_numbers_and_they_land_in_their_places():
    view = mixed_view(picture(0), " what", " red")
    cells = [[1, 2], [3, 12]]
    with chat_server(Reply(content=f"Here:\n```json\n{as_json(cells, [0, 7.5])}\n```")) as server:
        simulator = simulate.by_chat(Chat(server.url, "tiny"), grid=2)
        found = simulator(Explanation("red things"), view)
        again = simulator(Explanation("red things"), view)
        assert len(server.requests) == 1
    np.testing.assert_array_equal(found, again)
    grid = found[:16].reshape(4, 4)
    assert (grid[0, 1], grid[1, 2], grid[2, 0], grid[3, 3]) == (1, 2, 3, 10)  # 12 is beyond 10
    assert found[16:].tolist() == [0.0, 7.5]
    parts = server.requests[0]["messages"][1]["content"]
    asked = " ".join(part["text"] for part in parts if part["type"] == "text")
    for said in ("red things", '["what", "red"]', "2 x 2 grid", "2 numbers"):
        assert said in asked


def test_the_prompt_does_not_hold_the_activations():
    """They are not in a view at all, so there is nothing to give away."""
    fields = set(SampleView.__dataclass_fields__)
    assert fields == {
        *("number", "sample", "kinds", "tokens", "roles", "image_index", "boxes"),
    }
    prompt = simulate_prompt("dogs", mixed_view(picture(0), "a"), grid=3)
    assert len(prompt.images) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("I cannot say.", "expected a JSON object"),
        ("{1: 2", "expected a JSON object"),
        ("{'image 1': 3}", "not JSON"),
        (as_json([[1, 2]], [0, 0]), r"shape \(2, 2\)"),
        (as_json([[1, 2], [3, 4]], [0]), r"shape \(2,\)"),
        (as_json([[1, 2], [3, "x"]], [0, 0]), "expected numbers"),
        (as_json([[1, 2], [3]], [0, 0]), "expected numbers"),
        (as_json([[1, 2], [3, None]], [0, 0]), "expected numbers"),
        ('{"image 1": [[1, 2], [3, NaN]], "words": [0, 0]}', "expected numbers"),
        (as_json([[1, 2], [3, 4]]), "expected numbers"),
    ],
)
def test_replies_of_another_form_are_useless(reply: str, message: str):
    with pytest.raises(ReplyError, match=message):
        read_prediction(reply, mixed_view(picture(0), "a", "b"), grid=2)


def test_a_text_has_no_image_to_predict():
    prompt = simulate_prompt("dogs", text_view("a", "dog"))
    assert "image" not in prompt.text.replace(prompt.instruction, "")
    assert read_prediction('{"words": [0, 9]}', text_view("a", "dog")).tolist() == [0, 9]


def test_without_an_explanation_nothing_is_asked():
    with chat_server() as server:
        found = simulate.by_chat(Chat(server.url, "tiny"))(Explanation(""), text_view("a"))
        assert np.isnan(found).all()
        assert server.requests == []


def test_the_cost_counts_each_sample():
    chat = Chat("http://localhost:1/v1", "tiny", max_tokens=50)
    views = [mixed_view(picture(0), "a"), text_view("a")]
    found = simulate.by_chat(chat).cost([*views, views[0]])
    assert (found.requests, found.images, found.output_tokens) == (3, 2, 150)


def test_a_grid_needs_a_cell():
    with pytest.raises(ValueError, match="grid of at least 1"):
        simulate.by_chat(Chat("http://localhost:1/v1", "tiny"), grid=0)


def test_parameters_name_the_simulator_and_no_key():
    chat = Chat("http://localhost:1/v1", "tiny", key="secret")
    said = json.dumps(simulate.by_chat(chat).parameters)
    assert "tiny" in said
    assert "secret" not in said
    assert simulate.by_concepts().parameters == {"simulator": "concepts", "cover": 0.25}

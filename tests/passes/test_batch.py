"""Samples with the answers that they are scored on: the right tokens, whatever the batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.families import KINDS, build
from tests.families.base import picture
from tests.geometry.families import placeholder
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM
from vlm_lens.data import Sample
from vlm_lens.passes.answers import media_tokens
from vlm_lens.passes.batch import Batch, make_batches

TEXTS = ["what color is the circle ?", "is the square red ?", "left", "two ?"]
ANSWERS = ["red circle", "two", "blue one .", "green"]
FEW = ["llava_next", "instructblip-llama", "blip2-t5", "qwen2_5_vl", "mllama", "kosmos2"]


@cache
def built(name: str) -> HookedVLM:
    if name == "llava":
        return build_tiny("clip-llama").model
    hf, processor = build(name)
    return HookedVLM(hf, processor=processor)


def samples_of(name: str) -> list[Sample]:
    here = "<image>" if name == "llava" else placeholder(name)
    several = name == "llava" or "text" in KINDS[name]
    counts = [1, 0, 2, 1] if several else [1] * 4
    if name == "mllama":  # a text beside images is not what it is alone, in Hugging Face too
        counts[1] = 1
    return [
        Sample(
            images=[picture(3 * i + j, size=(50 + 8 * i, 40)) for j in range(count)],
            text=f"{here * count} {text}",
            answer=answer,
        )
        for i, (count, text, answer) in enumerate(zip(counts, TEXTS, ANSWERS, strict=True))
    ]


def scored_tokens(batch: Batch) -> list[list[int]]:
    """The tokens of each sample that a prediction is scored on."""
    return [
        targets[scored].tolist()
        for targets, scored in zip(batch.targets, batch.scored, strict=True)
    ]


@torch.no_grad()
def predicted(model: HookedVLM, batch: Batch) -> list[torch.Tensor]:
    """The logits that are scored, sample by sample."""
    logits = model(batch.arguments)[:, :-1]
    return [row[scored] for row, scored in zip(logits, batch.scored, strict=True)]


@pytest.mark.sampled
@pytest.mark.parametrize("target", ["own", "answer"])
@pytest.mark.parametrize("name", ["llava", *FEW])
def test_a_sample_is_scored_on_the_same_alone_and_in_a_batch(name: str, target: Any) -> None:
    model, samples = built(name), samples_of(name)
    options = {"target": target, "max_new_tokens": 4}
    [together] = make_batches(model, samples, **options)
    singly = make_batches(model, samples, batch_size=1, **options)
    assert [sample for batch in singly for sample in batch.samples] == samples
    assert scored_tokens(together) == [scored_tokens(batch)[0] for batch in singly]
    assert together.answers == [batch.answers[0] for batch in singly]
    # All is real where nothing is filled up, and as much of it is in the batch.
    assert all(batch.real.all() for batch in singly)
    assert together.real.sum(1).tolist() == [batch.real.shape[1] for batch in singly]
    for mine, batch in zip(predicted(model, together), singly, strict=True):
        torch.testing.assert_close(mine, predicted(model, batch)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llava", *FEW])
def test_an_own_answer_is_what_the_model_predicts_greedily(name: str) -> None:
    model = built(name)
    [batch] = make_batches(model, samples_of(name), max_new_tokens=5)
    media = media_tokens(model)
    for logits, tokens in zip(predicted(model, batch), scored_tokens(batch), strict=True):
        assert 1 <= len(tokens) <= 5
        logits[:, [token for token in media if token < logits.shape[1]]] = -torch.inf
        assert logits.argmax(1).tolist() == tokens
    texts = [model.tokenizer.decode(t, skip_special_tokens=True) for t in scored_tokens(batch)]
    assert [text.strip() for text in texts] == batch.answers


@pytest.mark.parametrize("name", ["llava", *FEW])
def test_a_given_answer_is_scored_token_by_token(name: str) -> None:
    model = built(name)
    [batch] = make_batches(model, samples_of(name), target="answer", max_new_tokens=1)
    expected = [model.tokenizer(a, add_special_tokens=False)["input_ids"] for a in ANSWERS]
    assert scored_tokens(batch) == expected


def ending(tiny: Tiny, *, after: str) -> None:
    """Makes the model end its answer after a word."""
    hf, tokenizer = tiny.hf, tiny.processor.tokenizer
    word, end = tokenizer.convert_tokens_to_ids(after), tokenizer.eos_token_id
    hf.lm_head.weight.data.zero_()
    stream = hf.model.language_model
    for block in stream.layers:
        block.mlp.down_proj.weight.data.zero_()
        block.self_attn.o_proj.weight.data.zero_()
    stream.embed_tokens.weight.data[:, 0] = 0.0
    stream.embed_tokens.weight.data[word, 0] = 50.0
    hf.lm_head.weight.data[end, 0] = 1.0  # the word itself speaks for the end, ...
    hf.lm_head.weight.data[word, 1] = 1.0  # ... and question marks for the word
    stream.embed_tokens.weight.data[:, 1] = 0.0
    stream.embed_tokens.weight.data[tokenizer.convert_tokens_to_ids("?"), 1] = 50.0


def test_the_end_of_an_own_answer_is_scored_and_nothing_behind_it() -> None:
    tiny = build_tiny("clip-llama")
    ending(tiny, after="red")
    end = tiny.processor.tokenizer.eos_token_id
    red = tiny.processor.tokenizer.convert_tokens_to_ids("red")
    samples = [Sample([], text) for text in ("what ?", "is the square red ?", "left one")]
    [batch] = make_batches(tiny.model, samples, max_new_tokens=4)
    first, second, third = scored_tokens(batch)
    assert first == second == [red, end]
    assert len(third) == 4
    assert batch.answers[:2] == ["red", "red"]
    # The answers of two tokens are filled up to four, which holds nothing real.
    n_prompt = batch.prompts.shape[1]
    assert batch.real[:, n_prompt:].sum(1).tolist() == [2, 2, 4]


def test_only_the_language_model_knows_where_answers_of_blip_end() -> None:
    """BLIP's own settings are not what its language model generates with."""
    hf, processor = build("instructblip-llama")
    hf.generation_config.eos_token_id = None
    model = HookedVLM(hf, processor=processor)
    samples = samples_of("instructblip-llama")
    [expected] = make_batches(built("instructblip-llama"), samples, max_new_tokens=8)
    [found] = make_batches(model, samples, max_new_tokens=8)
    assert scored_tokens(found) == scored_tokens(expected)


def test_an_own_answer_holds_no_image() -> None:
    tiny = build_tiny("clip-llama")
    image = tiny.hf.config.image_token_id
    bias = torch.zeros(tiny.hf.lm_head.out_features)
    bias[image] = 100.0
    tiny.hf.lm_head.bias = torch.nn.Parameter(bias)
    [batch] = make_batches(tiny.model, [Sample([], "what is two ?")], max_new_tokens=3)
    assert image not in scored_tokens(batch)[0]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_text_is_scored_as_it_is(name: str) -> None:
    model = built(name)
    texts = ["what color is the circle ?", "left right"]
    [batch] = make_batches(model, [Sample([], t) for t in texts], target="text", max_new_tokens=1)
    words = [model.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    bos = bool(model.tokenizer("a")["input_ids"][0] == model.tokenizer.bos_token_id)
    assert scored_tokens(batch) == [w if bos else w[1:] for w in words]


def test_batches_hold_all_samples_in_order() -> None:
    samples = [*samples_of("llava"), *samples_of("llava")[:1]]
    batches = make_batches(built("llava"), samples, batch_size=2, target="answer", max_new_tokens=1)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert [sample for batch in batches for sample in batch.samples] == samples


def test_nothing_needs_or_gets_a_gradient() -> None:
    [batch] = make_batches(built("llava"), samples_of("llava"), max_new_tokens=2)
    assert not any(value.requires_grad for value in batch.arguments.values())


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        ([], {}, "at least one sample, got none"),
        ([Sample([], "what ?")], {"batch_size": 0}, "batch_size of at least 1, got 0"),
        ([Sample([], "what ?")], {"max_new_tokens": 0}, "max_new_tokens of at least 1, got 0"),
        ([Sample([], "what ?")], {"target": "answer"}, "sample 0 .* has none"),
        (
            [Sample([], "what ?", answer="red"), Sample([], "is it ?", answer=" ")],
            {"target": "answer"},
            "sample 1: the answer is empty",
        ),
    ],
)
def test_refuses_what_has_nothing_to_score(
    samples: list[Sample], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_batches(built("llava"), samples, **options)


def test_refuses_a_text_whose_only_token_nothing_predicts() -> None:
    samples = [Sample([], "left right"), Sample([], "left")]
    with pytest.raises(ValueError, match="at least one token to score, .* None to 'left'"):
        make_batches(built("qwen2_5_vl"), samples, target="text", max_new_tokens=1)


@pytest.mark.usefixtures("unchecked")
def test_refuses_another_target() -> None:
    target: Any = "caption"
    with pytest.raises(ValueError, match="got 'caption'"):
        make_batches(built("llava"), [Sample([], "what ?")], target=target)

"""Ways to generate, on every family: all sequences, Hugging Face's objects, pieces, edits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from tests.families import FAMILIES
from tests.test_generation_families import (
    ENCODER_DECODERS,
    built,
    greedy,
    inputs_of,
    nothing_is_left,  # noqa: F401 - a fixture
)
from tests.tiny import Tiny
from vlm_lens import HookedVLM, NeuronSet

SEVERAL: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 2, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 2},
}
# What Hugging Face itself cannot do with a family.
WITHOUT_CHUNKS = [
    "instructblip-llama",
    "blip2-opt",
    "kosmos2",
    *ENCODER_DECODERS,
    "qwen2_audio",
    "mllama",
]
WITHOUT_GUESSES = ["mllama"]
WITHOUT_ASSISTANT = ["instructblip-llama", "blip2-opt", *ENCODER_DECODERS, "mllama", "qwen3_vl"]


def read_by(name: str, kind: str) -> dict[str, Tensor]:
    """What `generate` reads: no start of a decoder."""
    return {k: v for k, v in inputs_of(name, kind).items() if not k.startswith("decoder_")}


@pytest.mark.parametrize("way", SEVERAL)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_sequence_comes_back_as_from_hugging_face(name: str, way: str):
    model, inputs = built(name), read_by(name, "batch")
    options = {**greedy(model, 3), **SEVERAL[way]}
    torch.manual_seed(0)
    expected = model.hf_model.generate(**inputs, **options)
    torch.manual_seed(0)
    assert torch.equal(model.generate(**inputs, return_type="tokens", **options), expected)
    torch.manual_seed(0)
    assert len(model.generate(inputs, **options)) == len(expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_come_in_hugging_faces_object(name: str):
    model, inputs = built(name), read_by(name, "image")
    options = {**greedy(model, 3), "output_scores": True}
    expected = model.hf_model.generate(**inputs, **options, return_dict_in_generate=True)
    for out in (
        model.generate(inputs, **options),
        model.generate_with_cache(inputs, names_filter="projector.hook_out", **options)[0],
    ):
        assert type(out) is type(expected)
        assert torch.equal(out.sequences, expected.sequences)
        torch.testing.assert_close(out.scores, expected.scores)


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_make_up_the_whole(name: str):
    model, inputs = built(name), inputs_of(name, "batch")
    options = {**greedy(model, 3), "do_sample": True, "num_return_sequences": 2}
    whole, pieces = {}, {}
    for kind in ("tokens", "str"):
        torch.manual_seed(0)
        whole[kind] = model.generate(inputs, return_type=kind, **options)
        torch.manual_seed(0)
        stream = model.generate_stream(inputs, 3, 2, return_type=kind, **without(options))
        pieces[kind] = list(stream)
    assert torch.equal(torch.cat(pieces["tokens"], dim=1), whole["tokens"])
    assert ["".join(row) for row in zip(*pieces["str"], strict=True)] == whole["str"]


def without(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "max_new_tokens"}


def ways_of(name: str) -> dict[str, dict[str, Any]]:
    """All ways to generate that bring the sequence in other pieces, or in several rows."""
    ways: dict[str, dict[str, Any]] = {"one step a token": {}, **SEVERAL}
    ways["no cache"] = {"use_cache": False}
    if name not in WITHOUT_CHUNKS:
        ways["chunks"] = {"prefill_chunk_size": 3}
    if name not in WITHOUT_GUESSES:
        ways["guesses"] = {"prompt_lookup_num_tokens": 2}
    if name not in WITHOUT_ASSISTANT:
        ways["assistant"] = {"assistant_model": copy.deepcopy(built(name).hf_model)}
    return ways


def seen_at(
    site: str, model: HookedVLM, edits: Any, inputs: dict[str, Tensor], options: dict[str, Any]
) -> list[tuple[int, Tensor]]:
    """For each step, where it starts and what neuron 1 was after edits."""
    seen: list[tuple[int, Tensor]] = []
    look = (site, lambda t, hook: seen.append((hook.step.past, t[..., 1].clone())))
    with model.hooks([*edits, look]):
        model.generate(**inputs, **options)
    return seen


@pytest.mark.parametrize("generated", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_edits_are_where_they_should_be_in_every_way(name: str, generated: bool):
    model, inputs = built(name), read_by(name, "image")
    if name in ENCODER_DECODERS:
        site, where = "decoder.blocks.0.mlp.hook_post", torch.ones(1, 1, dtype=torch.bool)
    else:
        site, where = "blocks.0.mlp.hook_post", torch.rand(inputs["input_ids"].shape) > 0.5
    edits = NeuronSet.from_indices({site: [1]}).ablate(50.0, where=where, generated=generated)
    for way, options in ways_of(name).items():
        seen = seen_at(site, model, edits, inputs, {**greedy(model, 4), **options})
        assert {past for past, _ in seen}, way
        for past, values in seen:
            expected = torch.cat([where[0], torch.tensor([generated] * 8)])
            expected = expected[past : past + values.shape[1]].expand_as(values)
            assert torch.equal(values == 50, expected), (way, past)


def test_edits_in_a_tower_follow_several_sequences():
    """Mllama's tower sees each image once for each sequence; the others' once at all."""
    for name in ("mllama", "llava_next"):
        model, inputs = built(name), read_by(name, "image")
        site = "vision_encoder.blocks.0.mlp.hook_post"
        _, cache = model.run_with_cache(inputs, names_filter=site)
        where = torch.zeros(cache[site].shape[:2], dtype=torch.bool)
        where[:, 2] = True
        edits = NeuronSet.from_indices({site: [1]}).ablate(50.0, where=where)
        options = {**greedy(model, 2), **SEVERAL["beams"]}
        [(_, values)] = seen_at(site, model, edits, inputs, options)
        assert torch.equal(values == 50, where.repeat(len(values) // len(where), 1)), name


def test_a_mask_of_another_prompt_is_refused_however_it_is_generated(llava: Tiny):
    inputs = llava.inputs("image")
    for n in (3, inputs.shape[1] + 2):
        where = torch.ones(1, n, dtype=torch.bool)
        edits = NeuronSet.from_indices({"blocks.0.mlp.hook_post": [1]}).ablate(where=where)
        for options in ({}, {"prefill_chunk_size": 3}, {"num_beams": 2}):
            with pytest.raises(ValueError, match="where has shape"), llava.model.hooks(edits):
                llava.model.generate(inputs, 2, **options)
        with pytest.raises(ValueError, match="where has shape"), llava.model.hooks(edits):
            llava.model(inputs)
    where = inputs.positions_mask("image")
    edits = NeuronSet.from_indices({"blocks.0.mlp.hook_post": [1]}).ablate(where=where)
    with pytest.raises(ValueError, match="leave guidance_scale out"), llava.model.hooks(edits):
        llava.model.generate(inputs, 2, guidance_scale=2.0)


def test_a_loop_of_ones_own_edits_positions_behind_the_prompt(llava: Tiny):
    inputs, seen = llava.inputs("text"), []
    where = torch.zeros(inputs.shape, dtype=torch.bool)
    site = "blocks.0.mlp.hook_post"
    edits = NeuronSet.from_indices({site: [1]}).ablate(50.0, where=where)
    with llava.model.hooks(
        [*edits, (site, lambda t, hook: seen.append(bool((t[..., 1] == 50).all())))]
    ):
        past = llava.hf(**inputs, use_cache=True).past_key_values
        llava.model(inputs.input_ids[:, :1], past_key_values=past)
    assert seen == [False, True]


def test_options_under_transformer_lens_names(llava: Tiny, capsys: pytest.CaptureFixture[str]):
    model, inputs = llava.model, llava.inputs("text")
    tokens = model.generate(inputs, 4, return_type="tokens", verbose=True, use_past_kv_cache=True)
    assert torch.equal(tokens, llava.hf.generate(**inputs, max_new_tokens=4))
    assert "4" in capsys.readouterr().err
    endless = model.generate(inputs, 4, return_type="tokens", stop_at_eos=False)
    assert torch.equal(endless, llava.hf.generate(**inputs, max_new_tokens=4, eos_token_id=None))
    assert endless.shape[1] == inputs.shape[1] + 4


def test_another_option_may_say_how_long(llava: Tiny):
    inputs = llava.inputs("text")
    for options in (
        {"generation_config": GenerationConfig(max_new_tokens=2, min_new_tokens=2)},
        {"max_length": inputs.shape[1] + 2, "min_new_tokens": 2},
    ):
        tokens = llava.model.generate(inputs, return_type="tokens", **options)
        assert tokens.shape[1] == inputs.shape[1] + 2


def test_the_answer_with_its_prompt_comes_as_what_went_in(shapes: HookedVLM):
    answer = shapes.generate("what color", 2)
    assert shapes.generate("what color", 2, return_type="input") == f"what color {answer}"
    tokens = shapes.to_tokens("what color")
    both = shapes.generate(tokens, 2, return_type="input")
    assert torch.equal(both[:, : tokens.shape[1]], tokens)
    pieces = shapes.generate_stream("what color", 2, 1, return_type="input")
    assert "".join(pieces) == f"what color {answer}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "leave num_beams out"),
        ({"output_scores": True}, "leave output_scores out"),
        ({"max_tokens_per_yield": 0}, "at least 1, got 0"),
    ],
)
def test_what_cannot_be_streamed_is_refused_at_once(llava: Tiny, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        llava.model.generate_stream(llava.inputs("text"), **options)


@pytest.mark.parametrize("wrong", ["3", 2.5, True, 0, -1])
@pytest.mark.usefixtures("unchecked")
def test_a_number_of_tokens_is_a_number(llava: Tiny, wrong: Any):
    with pytest.raises(ValueError, match=f"max_new_tokens of at least 1, got {wrong!r}"):
        llava.model.generate(llava.inputs("text"), wrong)


def test_strings_to_stop_at_need_a_tokenizer(llava: Tiny):
    bare = HookedVLM(llava.hf)
    with pytest.raises(ValueError, match="stop_strings='red' needs a tokenizer"):
        bare.generate(llava.inputs("text"), stop_strings="red")


@pytest.mark.parametrize(
    "asked",
    [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}, {"guidance_scale": 2.0}],
)
def test_what_a_configuration_asks_for_does_not_vanish(llava: Tiny, asked: dict[str, Any]):
    """An option of a given configuration is refused where the option itself is."""
    inputs, config = llava.inputs("text"), GenerationConfig(**asked)
    with pytest.raises(ValueError, match="generate_with_cache follows"):
        llava.model.generate_with_cache(inputs, names_filter="hook_embed", generation_config=config)
    if "num_beams" in asked:
        with pytest.raises(ValueError, match="leave num_beams out"):
            llava.model.generate_stream(inputs, generation_config=config)

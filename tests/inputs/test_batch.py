"""Inputs behave as a mapping of tensors, and can be moved and extended."""

from typing import Any

import pytest
import torch
from PIL import Image

from tests.inputs.conftest import build_config, build_model, build_processor
from vlm_lens.geometry import fixed_layout
from vlm_lens.inputs import Inputs, prepare


@pytest.fixture
def inputs() -> Inputs:
    return prepare(
        build_processor(),
        build_config(),
        images=[Image.new("RGB", (50, 40)), None],
        text=["what color ?", "what ?"],
        layout=fixed_layout,
    )


def test_mapping(inputs: Inputs):
    assert list(inputs) == list(inputs.keys()) == ["input_ids", "attention_mask", "pixel_values"]
    assert len(inputs) == 3
    assert inputs["input_ids"] is inputs.input_ids
    assert dict(**inputs)["attention_mask"] is inputs.attention_mask
    assert inputs["pixel_values"] is inputs.pixel_values
    assert inputs.shape == (2, 20)
    with pytest.raises(KeyError):
        inputs["nothing"]


def test_to_changes_the_dtype_of_floats_only(inputs: Inputs):
    half = inputs.to(torch.float16)
    assert half.pixel_values is not None
    assert half.pixel_values.dtype == torch.float16
    assert half.input_ids.dtype == torch.int64
    assert inputs["pixel_values"].dtype == torch.float32
    assert half.token_map == inputs.token_map


def test_to_moves_every_tensor(inputs: Inputs):
    moved = inputs.to("meta")
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}
    assert {tensor.device.type for tensor in inputs.values()} == {"cpu"}


def test_positions_mask(inputs: Inputs):
    assert inputs.positions_mask("image").sum(dim=1).tolist() == [16, 0]
    assert torch.equal(inputs.positions_mask("padding"), inputs.attention_mask == 0)


def test_repr(inputs: Inputs):
    assert repr(inputs) == (
        "Inputs(2 samples of 20 positions, 1 image: input_ids [2, 20], "
        "attention_mask [2, 20], pixel_values [1, 3, 32, 32], on cpu)"
    )


def test_extend_replays_a_generation(inputs: Inputs):
    model: Any = build_model()
    generated = model.generate(
        **inputs,
        max_new_tokens=4,
        do_sample=False,
        suppress_tokens=[model.config.image_token_id],
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    replay = inputs.extend(generated.sequences)
    assert replay.shape == (2, 24)
    assert replay.attention_mask[:, -4:].all()
    assert [token_map.positions("answer") for token_map in replay.token_map] == [
        [20, 21, 22, 23]
    ] * 2
    assert replay.token_map[0].positions("image") == inputs.token_map[0].positions("image")
    logits = model(**replay).logits[:, 19:23]
    assert torch.allclose(logits, torch.stack(generated.logits, dim=1), atol=1e-4)


def test_extend_names_the_new_tokens(inputs: Inputs):
    longer = inputs.extend(torch.cat([inputs.input_ids, torch.tensor([[10, 2], [11, 0]])], dim=1))
    assert longer.token_map[0].tokens[-2:] == ["red", "</s>"]
    assert longer.token_map[0].modality[-2:] == ["text", "special"]
    assert inputs.extend(inputs.input_ids).token_map == inputs.token_map


def test_extend_with_other_tokens_is_an_error(inputs: Inputs):
    for tokens in (inputs.input_ids + 1, inputs.input_ids[:, 1:], inputs.input_ids[:1]):
        with pytest.raises(ValueError, match=r"\(2, 20 or more\) that start with .*input_ids"):
            inputs.extend(tokens)


def test_extend_with_an_image_token_is_an_error(inputs: Inputs):
    with pytest.raises(ValueError, match=r"an answer holds the image token \(id 4\)"):
        inputs.extend(torch.cat([inputs.input_ids, torch.full((2, 1), 4)], dim=1))

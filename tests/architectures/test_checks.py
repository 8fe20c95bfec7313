"""Each check at load fires and names the path, on configurations and records a bit off."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from torch import nn

from tests.families import ALL_MODELS, build
from vlm_lens import HookedVLM
from vlm_lens.architectures import (
    BLOCKS,
    Architecture,
    ArchitectureError,
    BlockPaths,
    MLPPaths,
    architecture_of,
    records,
    register_architecture,
)
from vlm_lens.architectures.model_types import LLAMA, T5_DECODER

TEXT = "model.language_model.layers"
TOWER = "model.vision_tower.encoder.layers"


@pytest.fixture(autouse=True)
def registry_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_lens.architectures.registry._RECORDS", records())


@cache
def _built(name: str) -> Any:
    return build(name)[0]


def model(name: str = "llava_next") -> Any:
    """A model of its own, to be changed."""
    return deepcopy(_built(name))


def record_of(hf: Any) -> Architecture:
    return architecture_of(type(hf).__name__, hf.config)


def with_text_block(hf: Any, block: BlockPaths | tuple[BlockPaths, ...]) -> None:
    record = record_of(hf)
    text = replace(record.language_model, block=block)
    register_architecture(replace(record, language_model=text))


def refusal(hf: Any) -> str:
    with pytest.raises(ArchitectureError) as refused:
        HookedVLM(hf)
    return str(refused.value)


assert LLAMA.attn is not None
ATTENTION = LLAMA.attn


@pytest.mark.parametrize("name", ALL_MODELS)
def test_models_as_they_come_pass(name: str):
    HookedVLM(_built(name))


# The configuration says something else ------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "size", "value", "message"),
    [
        ("text_config", "num_hidden_layers", 5, f"5 blocks at '{TEXT}'.*found 3"),
        ("vision_config", "num_hidden_layers", 2, f"2 blocks at '{TOWER}'.*found 3"),
        ("text_config", "hidden_size", 48, rf"48 entries at '{TEXT}\.0 \(width.*found 32"),
        ("vision_config", "intermediate_size", 64, rf"64 neurons at '{TOWER}\.0 \(MLP.*found 48"),
        ("text_config", "head_dim", 4, rf"16 outputs of the queries at '{TEXT}\.0 \(att.*found 32"),
    ],
)
def test_sizes_are_held_against_the_configuration(part: str, size: str, value: int, message: str):
    hf = model()
    setattr(getattr(hf.config, part), size, value)
    with pytest.raises(ArchitectureError, match=message):
        HookedVLM(hf)


def test_the_advice_is_to_register_another_record():
    hf = model()
    hf.config.text_config.num_hidden_layers = 5
    assert "does not fit this model: register another one with vlm_lens" in refusal(hf)


@pytest.mark.parametrize(
    ("stack", "size"), [("encoder", "num_layers"), ("decoder", "num_decoder_layers")]
)
def test_encoder_and_decoder_have_their_own_number_of_blocks(stack: str, size: str):
    hf = model("blip2-t5")
    setattr(hf.config.text_config, size, 7)
    assert f"Expected 7 blocks at 'language_model.{stack}.block'" in refusal(hf)


def test_a_gate_that_the_configuration_does_not_have():
    hf = model("blip2-t5")
    hf.config.text_config.is_gated_act = False
    message = refusal(hf)
    assert "MLP of 'language_model.encoder.block.0' to be not gated" in message
    assert "text_config.is_gated_act" in message


def test_heads_are_not_guessed():
    hf = model()
    record = record_of(hf)
    elsewhere = replace(record.language_model, config="text_config.rope_parameters")
    register_architecture(replace(record, language_model=elsewhere))
    assert "Expected text_config.rope_parameters to state its number of heads" in refusal(hf)


# The record leads elsewhere -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            replace(LLAMA, mlp=replace(LLAMA.mlp, down="self_attn.o_proj")),
            f"64 neurons at '{TEXT}.0 (MLP)'.*found 32",
        ),
        (
            replace(LLAMA, mlp=replace(LLAMA.mlp, up="mlp.down_proj")),
            f"32 entries at '{TEXT}.0 (width of the stream)'.*found 64",
        ),
        (
            replace(LLAMA, mlp=replace(LLAMA.mlp, down="mlp.up_proj")),
            f"64 neurons at '{TEXT}.0 (MLP)'.*found 32",
        ),
    ],
    ids=["output of attention as down", "down as up", "up as down"],
)
def test_an_mlp_path_that_leads_to_another_layer(block: BlockPaths, message: str):
    hf = model()
    with_text_block(hf, block)
    expected, found = message.split(".*")
    assert expected in refusal(hf)
    assert found in refusal(hf)


def test_a_norm_path_that_leads_to_the_norm_of_heads():
    hf = model("qwen3_vl")
    with_text_block(hf, replace(LLAMA, ln2="self_attn.q_norm"))
    message = refusal(hf)
    assert f"Expected 32 weights at '{TEXT}.0 (norms)'" in message
    assert "found 8" in message


def test_a_query_path_that_leads_to_the_keys():
    hf = model()
    with_text_block(hf, replace(LLAMA, attn=replace(ATTENTION, q="self_attn.k_proj")))
    message = refusal(hf)
    assert f"Expected 32 outputs of the queries at '{TEXT}.0 (attention)'" in message
    assert "found 16" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"k": "self_attn.q_proj"}, "16 outputs of the keys"),
        ({"v": "self_attn.o_proj"}, "16 outputs of the values"),
        ({"o": "self_attn.k_proj"}, "32 outputs of the output projection"),
        ({"o": "mlp.down_proj"}, "32 inputs of the output projection"),
    ],
)
def test_paths_of_attention_that_lead_elsewhere(changes: dict[str, str], expected: str):
    hf = model()
    with_text_block(hf, replace(LLAMA, attn=replace(ATTENTION, **changes)))
    assert f"Expected {expected} at '{TEXT}.0 (attention)'" in refusal(hf)


@pytest.mark.parametrize("part", ["embed", "unembed"])
def test_a_vocabulary_that_is_another_module(part: str):
    hf = model()
    other = f"{TEXT}.0.mlp.up_proj"
    register_architecture(replace(record_of(hf), **{part: other}))
    assert f"words at {other!r}" in refusal(hf)


def test_an_encoder_output_that_no_block_gives():
    hf = model()
    record = record_of(hf)
    assert record.vision_encoder is not None
    tower = replace(record.vision_encoder, output_layer=lambda config: 9)
    register_architecture(replace(record, vision_encoder=tower))
    assert "hidden states 0 to 3, but the record's output_layer says 9" in refusal(hf)


def test_a_stack_of_another_part():
    hf = model("idefics3")
    record = record_of(hf)
    assert record.vision_encoder is not None
    text = replace(record.vision_encoder, config="text_config", block=BLOCKS["idefics3_vision"])
    register_architecture(replace(record, language_model=text))
    where = "model.vision_model.encoder.layers.0 (MLP)"
    assert f"Expected 64 neurons at '{where}'" in refusal(hf)


# The model is not as it should be -----------------------------------------------------------------


def _narrow_output(block: Any) -> None:
    block.mlp.down_proj = nn.Linear(64, 30)


def _short_norm(block: Any) -> None:
    block.input_layernorm = nn.LayerNorm(30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_narrow_output, r"32 outputs at '{}\.2 \(MLP, last layer\)'.*found 30"),
        (_short_norm, r"32 weights at '{}\.2 \(norms\)'.*found 30"),
    ],
)
def test_every_block_is_looked_at(change: Callable[[Any], None], message: str):
    hf = model()
    change(hf.model.language_model.layers[2])
    with pytest.raises(ArchitectureError, match=message.format(TEXT)):
        HookedVLM(hf)


# There is nothing where the record points ---------------------------------------------------------


def test_a_path_to_nowhere_is_named():
    hf = model()
    record = record_of(hf)
    register_architecture(replace(record, unembed="model.head"))
    assert "LlavaNextForConditionalGeneration to have a module at 'model.head'" in refusal(hf)


def test_a_path_to_nowhere_in_a_block_is_named():
    hf = model()
    with_text_block(hf, replace(LLAMA, ln2="norm2"))
    assert "MistralDecoderLayer has no module 'norm2'" in refusal(hf)


def test_blocks_that_no_table_fits():
    hf = model()
    with_text_block(hf, T5_DECODER)
    message = refusal(hf)
    assert f"None of the 2 tables of paths fits MistralDecoderLayer in '{TEXT}'" in message
    assert "'mlp.gate_proj'" in message


@pytest.mark.parametrize(
    "block",
    [
        replace(LLAMA, mlp=MLPPaths(down="mlp.down_proj")),
        replace(LLAMA, attn=replace(ATTENTION, k=None)),
    ],
    ids=["no first layer", "queries without keys"],
)
def test_a_record_that_says_too_little(block: BlockPaths):
    hf = model()
    with_text_block(hf, block)
    assert "in the record, got" in refusal(hf)


def test_a_text_model_of_an_unknown_type():
    hf = model()
    hf.config.text_config.model_type = "novel"
    assert "got 'novel'. Write its `BlockPaths`" in refusal(hf)

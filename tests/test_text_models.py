"""Text models that the tiny families do not hold: fused projections, norms after, query norms."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    GemmaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Phi3Config,
    Qwen3Config,
)

from tests.families.base import randomise
from vlm_lens import HookedVLM

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "pad_token_id": 0,
}
CONFIGS = {
    "phi3": Phi3Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "gemma": GemmaConfig(**SIZES),
    "gemma2": Gemma2Config(**SIZES),
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> HookedVLM:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=16,
    )
    torch.manual_seed(0)
    hf = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=CONFIGS[request.param],
            image_token_id=39,
            vision_feature_layer=-1,
        )
    )
    randomise(hf)
    return HookedVLM(hf.eval())


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    tokens = torch.tensor([[1, 39, 39, 39, 39, 5, 6, 7]])
    return {"input_ids": tokens, "pixel_values": torch.randn(1, 3, 32, 32)}


def test_every_hook_point_is_what_it_is_called(model: HookedVLM, inputs):
    found = model.verify(inputs)
    assert found.absent == found.unread == {}


def test_writing_anywhere_changes_the_logits_and_nothing_is_left(model: HookedVLM, inputs):
    with torch.no_grad():
        clean = model(inputs)
        for name in model.hook_dict:
            hook = (name, lambda t, hook: t * 1.5 + 0.1)
            assert not torch.equal(model.run_with_hooks(inputs, fwd_hooks=[hook]), clean), name
        assert torch.equal(model(inputs), clean)


def test_weights_are_those_of_the_named_parts(model: HookedVLM, inputs):
    """Of a fused projection, each part gets its own slice."""
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter="*")
    for layer, block in enumerate(model.blocks):
        normalized = cache[f"blocks.{layer}.ln1.hook_normalized"] * block.ln1.w
        for part in "QKV":
            heads = torch.einsum("bpd,hde->bphe", normalized, getattr(block.attn, f"W_{part}"))
            torch.testing.assert_close(heads, cache[part.lower(), layer], rtol=1e-3, atol=1e-3)
        normalized = cache[f"blocks.{layer}.ln2.hook_normalized"] * block.ln2.w
        pre, linear = cache["pre", layer], cache[f"blocks.{layer}.mlp.hook_pre_linear"]
        torch.testing.assert_close(normalized @ block.mlp.W_gate, pre, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(normalized @ block.mlp.W_in, linear, rtol=1e-3, atol=1e-3)
        post = cache[f"blocks.{layer}.mlp.hook_act"] * linear
        torch.testing.assert_close(post, cache["post", layer], rtol=1e-3, atol=1e-3)
        stream = cache["resid_mid", layer] + cache["mlp_out", layer]
        torch.testing.assert_close(stream, cache["resid_post", layer], rtol=1e-3, atol=1e-3)


def test_writing_one_part_of_a_fused_projection_leaves_the_others(model: HookedVLM, inputs):
    names = [f"blocks.0.attn.hook_{part}" for part in "qkv"]
    with torch.no_grad():
        _, clean = model.run_with_cache(inputs, names_filter=names)
        with model.hooks([(names[1], lambda t, hook: t * 2)]):
            _, written = model.run_with_cache(inputs, names_filter=names)
    torch.testing.assert_close(written[names[1]], clean[names[1]] * 2)
    for other in (names[0], names[2]):
        assert torch.equal(written[other], clean[other])


def test_parts_of_the_stream_and_inputs_of_heads(model: HookedVLM, inputs):
    """Also where queries are part of a fused projection, and where norms come after."""
    with torch.no_grad():
        clean, cache = model.run_with_cache(inputs)
        parts = cache.get_full_resid_decomposition(expand_neurons=True)
        torch.testing.assert_close(parts.sum(0), cache["resid_post", -1], rtol=1e-3, atol=1e-4)
        read = cache.accumulated_resid(apply_ln=True)[-1] @ model.tokens_to_residual_directions(7)
        torch.testing.assert_close(read, clean[..., 7], rtol=1e-3, atol=1e-3)
        new, block = torch.randn_like(cache["resid_pre", 1]), model.blocks[1]
        model.set_use_split_qkv_input(True)
        for part in "qkv":
            by_hand = block.ln1(new) @ getattr(block.attn, f"W_{part.upper()}")[1]

            def write(tensor, hook, value):
                tensor = tensor.clone()
                tensor[..., 1, :] = value
                return tensor

            names = f"blocks.1.attn.hook_{part}_input", f"blocks.1.attn.hook_{part}"
            found, expected = (
                model.run_with_hooks(inputs, fwd_hooks=[(name, partial(write, value=value))])
                for name, value in zip(names, (new, by_hand), strict=True)
            )
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
            assert (found - clean).abs().max() > 1e-4

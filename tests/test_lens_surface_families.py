"""Weights and directions under TransformerLens' names, on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config

from tests.families import ENCODER_DECODERS, MODELS, build, example
from tests.families.base import TEXT, token_ids
from vlm_lens import HookedVLM

TOKENS = torch.tensor([[5, 6], [7, 8]])
ATTENTION = ["W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"]


def load(name: str, **changes: Any) -> tuple[HookedVLM, dict[str, Tensor]]:
    hf, processor = build(name, **changes)
    return HookedVLM(hf, processor=processor), example(name, hf, processor, "image")


def read_and_logits(model: HookedVLM, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What directions read off the last stream, and the model's own logits of these tokens."""
    prefix = "decoder." if model.cfg.is_encoder_decoder else ""
    last = f"{prefix}blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    scale = f"{prefix}ln_final.hook_scale"
    with torch.no_grad():
        logits, cache = model.run_with_cache(inputs, names_filter=[last, scale])
        directions = model.tokens_to_residual_directions(TOKENS)
    assert directions.shape == (2, 2, model.cfg.d_model)
    read = torch.einsum("bpd,ijd->bpij", cache[last] / cache[scale], directions)
    return read, logits[..., TOKENS]


@pytest.mark.parametrize("name", MODELS)
def test_directions_read_the_logits_off_the_last_stream(name: str):
    """But for the constant that the norm's bias adds."""
    model, inputs = load(name)
    read, logits = read_and_logits(model, inputs)
    bias = model._language.ln_final.b
    constant = bias @ model.W_U[:, TOKENS.flatten()].detach()
    assert (constant.abs().max() > 0.01) == model._language.ln_final.centers
    torch.testing.assert_close(
        read + constant.view(2, 2) + model.b_U[TOKENS], logits, rtol=1e-3, atol=1e-3
    )


def test_directions_of_a_layer_norm_do_not_see_a_shift_of_the_whole_stream():
    model, _ = load("blip2-opt")
    directions = model.tokens_to_residual_directions(TOKENS)
    assert directions.sum(-1).abs().max() < 1e-5
    assert model.W_U.T[TOKENS].sum(-1).abs().max() > 0.1


def test_directions_of_a_t5_that_scales_its_output():
    """As it does where the embeddings are tied, which Flan-T5's are not."""
    model, inputs = load("blip2-t5")
    plain, _ = read_and_logits(model, inputs)
    model.hf_model.config.get_text_config().scale_decoder_outputs = True
    model.hf_model.language_model.config.scale_decoder_outputs = True
    read, logits = read_and_logits(model, inputs)
    torch.testing.assert_close(read, logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(read, plain / 32**0.5, rtol=1e-3, atol=1e-3)


def test_directions_give_the_logit_before_a_cap():
    """PaliGemma 2 has Gemma 2 as text model, whose logits are capped."""
    sizes = {**TEXT, **token_ids(), "num_key_value_heads": 1, "head_dim": 8}
    text = Gemma2Config(**sizes, vocab_size=22, final_logit_softcapping=2.0)
    model, inputs = load("paligemma", text_config=text)
    read, logits = read_and_logits(model, inputs)
    assert (read - logits).abs().max() > 0.05
    torch.testing.assert_close(2 * (read / 2).tanh(), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_weights_of_an_encoder_decoder_are_its_decoders(name: str):
    model, _ = load(name)
    for i, block in enumerate(model.decoder.blocks):
        assert torch.equal(model.W_in[i], block.mlp.W_in)
        assert torch.equal(model.W_Q[i], block.attn.W_Q)
    assert model.text is not None
    assert torch.equal(model.W_out[1], model.text.layers[1].layer[2].DenseReluDense.wo.weight.T)
    assert model.W_gate is not None
    assert model.accumulated_bias(3, include_mlp_biases=True).abs().max() == 0


@pytest.mark.parametrize("name", ["blip2-opt", "kosmos2"])
def test_accumulated_bias_is_what_biases_add_to_the_stream(name: str):
    """With all other weights of what is added at zero, the stream gains the biases alone."""
    model, inputs = load(name)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.projections["W_O"].module.weight.zero_()
            block.mlp.hf_module.weight.zero_()
        _, cache = model.run_with_cache(inputs, names_filter=["*resid_*"])
    start = cache["resid_pre", 0]
    for layer in (1, 2):
        added = cache["resid_pre", layer] - start
        torch.testing.assert_close(added[0, -1], model.accumulated_bias(layer).detach())
    added = cache["resid_mid", 1] - start
    torch.testing.assert_close(added[0, -1], model.accumulated_bias(1, mlp_input=True).detach())


def test_attention_weights_of_mllama_are_not_stacked_over_blocks_without():
    model, _ = load("mllama")
    message = r"in MllamaForConditionalGeneration blocks \[1\] attend to the image"
    for name in ATTENTION:
        with pytest.raises(ValueError, match=message):
            getattr(model, name)
    with pytest.raises(ValueError, match="for accumulated_bias.*" + message):
        model.accumulated_bias(2)
    assert model.accumulated_bias(1).shape == (32,)  # the blocks before it are ordinary ones
    assert model.blocks[1].cross_attn.W_Q.shape == model.blocks[0].attn.W_Q.shape == (4, 32, 8)
    assert model.W_in.shape == (3, 32, 64)

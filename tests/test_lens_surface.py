from __future__ import annotations

import pytest
import torch

from tests.tiny import Tiny


def test_tokens_as_transformer_lens_makes_them(llava: Tiny):
    model = llava.model
    bos = model.tokenizer.bos_token_id
    with_bos = model.to_tokens("red circle")
    assert with_bos.tolist() == [[bos, *model.to_tokens("red circle", prepend_bos=False)[0]]]
    assert torch.equal(model.to_tokens("red circle", prepend_bos=True), with_bos)
    batch = model.to_tokens(["red", "red circle ?"])
    assert batch[0].tolist()[:2] == [0, 0]
    right = model.to_tokens(["red", "red circle ?"], padding_side="right")
    assert right[0].tolist()[2:] == [0, 0]
    assert model.to_tokens("red " * 500).shape[1] == model.cfg.n_ctx
    assert model.to_tokens("red " * 500, truncate=False).shape[1] == 501


def test_strings_of_tokens(llava: Tiny):
    model = llava.model
    words = ["<bos>", "red", "circle"]
    tokens = model.to_tokens("red circle")
    assert model.to_str_tokens("red circle") == words
    assert model.to_str_tokens(tokens) == words
    assert model.to_str_tokens(tokens[0].numpy()) == words
    assert model.to_str_tokens(["red circle", "red"]) == [words, ["<bos>", "red"]]
    assert model.to_str_tokens("red circle", prepend_bos=False) == words[1:]
    assert model.to_string(tokens[0]) == "<bos> red circle"
    assert model.to_string(tokens) == ["<bos> red circle"]
    assert model.to_single_str_token(model.to_single_token("red")) == "red"
    with pytest.raises(ValueError, match="shape"):
        model.to_str_tokens(torch.zeros(2, 3, dtype=torch.long))


def test_a_string_of_several_tokens_is_no_single_token(llava: Tiny):
    with pytest.raises(ValueError, match=r"'red circle' is 2: \['red', 'circle'\]"):
        llava.model.to_single_token("red circle")


def test_weights_are_the_hugging_face_weights(tiny: Tiny):
    model, hf = tiny.model, tiny.hf.model.language_model
    x = torch.randn(5, model.cfg.d_model)
    for layer, block in enumerate(model.blocks):
        attention, mlp = hf.layers[layer].self_attn, hf.layers[layer].mlp
        for ours, linear in [
            ((block.mlp.W_in, block.mlp.b_in), mlp.up_proj),
            ((model.W_gate[layer], 0), mlp.gate_proj),
            (
                (model.W_Q[layer].permute(1, 0, 2).flatten(1), model.b_Q[layer].flatten()),
                attention.q_proj,
            ),
            (
                (model.W_K[layer].permute(1, 0, 2).flatten(1), model.b_K[layer].flatten()),
                attention.k_proj,
            ),
            (
                (model.W_V[layer].permute(1, 0, 2).flatten(1), model.b_V[layer].flatten()),
                attention.v_proj,
            ),
            ((model.W_O[layer].flatten(0, 1), model.b_O[layer]), attention.o_proj),
        ]:
            torch.testing.assert_close(x @ ours[0] + ours[1], linear(x))
    assert torch.equal(model.W_U, tiny.hf.lm_head.weight.T)
    assert model.W_E is hf.embed_tokens.weight
    assert model.b_U.abs().max() == 0
    assert model.W_out.shape == (3, model.cfg.d_mlp, model.cfg.d_model)
    assert model.b_in.shape == (3, model.cfg.d_mlp)
    assert model.b_out.shape == (3, model.cfg.d_model)


def test_accumulated_bias_counts_the_layers_before(tiny: Tiny):
    model = tiny.model
    expected = sum(block.attn.b_O + block.mlp.b_out for block in model.blocks[:2])
    torch.testing.assert_close(model.accumulated_bias(2), expected)
    torch.testing.assert_close(
        model.accumulated_bias(2, mlp_input=True, include_mlp_biases=False), model.b_O.sum(0)
    )
    for layer, mlp_input in [(4, False), (3, True), (-1, False)]:
        with pytest.raises(IndexError, match="layer of 0 to 3"):
            model.accumulated_bias(layer, mlp_input)


def test_residual_directions_read_off_the_logits(tiny: Tiny):
    model = tiny.model
    with torch.no_grad():
        logits, cache = model.run_with_cache(tiny.inputs("image"))
    scaled = cache["resid_post", -1] / cache["ln_final.hook_scale"]
    tokens = torch.tensor([[5, 6], [7, 8]])
    directions = model.tokens_to_residual_directions(tokens)
    assert directions.shape == (2, 2, model.cfg.d_model)
    read = torch.einsum("bpd,ijd->bpij", scaled, directions)
    torch.testing.assert_close(read, logits[..., tokens], rtol=1e-4, atol=1e-4)
    one = model.tokens_to_residual_directions("what")
    assert torch.equal(one, model.tokens_to_residual_directions(model.to_single_token("what")))
    for wrong in (-1, model.cfg.d_vocab_out, torch.tensor([3, -1])):
        with pytest.raises(ValueError, match="token ids from 0 to"):
            model.tokens_to_residual_directions(wrong)


def test_sizes(tiny: Tiny):
    cfg = tiny.model.cfg
    assert (cfg.d_model, cfg.d_head, cfg.n_heads, cfg.n_layers, cfg.d_mlp) == (32, 8, 4, 3, 64)
    assert cfg.n_key_value_heads == (4 if tiny.name.endswith("llama") else 2)
    assert cfg.n_ctx == 128
    assert cfg.d_vocab == len(tiny.model.tokenizer)
    assert cfg.normalization_type == "RMS"
    vision = cfg.vision_encoder
    assert (vision.n_layers, vision.d_mlp, vision.normalization_type) == (3, 48, "LN")
    assert (cfg.architecture, cfg.device) == ("LlavaForConditionalGeneration", "cpu")

"""Circuits, labels, parameters and the vocabulary's ends, as TransformerLens' tools read them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformer_lens import SVDInterpreter

from tests.families import ENCODER_DECODERS, MODELS, build, example
from tests.tiny import Tiny
from vlm_lens import HookedVLM


@pytest.fixture(autouse=True)
def _without_gradient():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> HookedVLM:
    hf, processor = build(request.param)
    return HookedVLM(hf, processor=processor)


def stored_head(model: HookedVLM, head: int) -> int:
    """Which of the stored keys and values a query head reads."""
    return head * (model.cfg.n_key_value_heads or model.cfg.n_heads) // model.cfg.n_heads


def test_circuits_pair_each_query_head_with_the_keys_and_values_it_reads(model: HookedVLM):
    blocks = model._language.blocks
    if any(not hasattr(block, "attn") for block in blocks):
        with pytest.raises(ValueError, match="attend to the image"):
            _ = model.OV
        return
    for layer, attention in enumerate(block.attn for block in blocks):
        for head in range(model.cfg.n_heads):
            kv = stored_head(model, head)
            moved = attention.W_V[kv] @ attention.W_O[head]
            torch.testing.assert_close(model.OV[layer, head].AB, moved)
            attended = attention.W_Q[head] @ attention.W_K[kv].T
            torch.testing.assert_close(model.QK[layer, head].AB, attended)


def test_parameters_have_the_names_and_shapes_of_transformer_lens(model: HookedVLM):
    cfg, named = model.cfg, model.tl_parameters()
    assert list(named) == [name for name, _ in model.tl_named_parameters()]
    blocks = model._language.blocks
    for layer, block in enumerate(blocks):
        assert torch.equal(named[f"blocks.{layer}.mlp.W_out"], block.mlp.W_out)
        assert torch.equal(named[f"blocks.{layer}.ln2.w"], block.ln2.w)
        for name in ("W_Q", "W_K", "W_V"):
            weight = named.get(f"blocks.{layer}.attn.{name}")
            assert (weight is None) != hasattr(block, "attn")
            if weight is not None:
                assert weight.shape == (cfg.n_heads, cfg.d_model, cfg.d_head)
    assert torch.equal(named["unembed.W_U"], model.W_U)
    assert model.n_params_total == sum(p.numel() for p in model.parameters())
    assert cfg.d_vocab_out == model.W_U.shape[1]


def test_the_svd_interpreter_runs(model: HookedVLM):
    interpreter, block = SVDInterpreter(model), model._language.blocks[2]
    head, cfg = model.cfg.n_heads - 1, model.cfg
    if cfg.d_vocab != cfg.d_vocab_out:  # Mllama embeds more tokens than it predicts
        with pytest.raises(AssertionError, match="Vectors shape"):
            interpreter.get_singular_vectors("w_in", 2)
        return
    found = interpreter.get_singular_vectors("OV", 2, num_vectors=3, head_index=head)
    matrix = block.attn.W_V[stored_head(model, head)] @ block.attn.W_O[head]
    expected = model.W_U.T @ torch.linalg.svd(matrix).Vh[:3].T
    assert found.shape == (cfg.d_vocab, 1, 3)
    torch.testing.assert_close(found[:, 0].abs(), expected.abs(), rtol=1e-3, atol=1e-4)
    read = interpreter.get_singular_vectors("w_in", 2, num_vectors=1)
    expected = model.W_U.T @ torch.linalg.svd(block.mlp.W_in.T * block.ln2.w).Vh[:1].T
    torch.testing.assert_close(read[:, 0].abs(), expected.abs(), rtol=1e-3, atol=1e-4)


def test_scores_of_composition(tiny: Tiny):
    model = tiny.model
    scores = model.all_composition_scores("V")
    left, right = (model.OV[layer, head].AB for layer, head in ((0, 1), (2, 3)))
    expected = (left @ right).norm() / left.norm() / right.norm()
    torch.testing.assert_close(scores[0, 1, 2, 3], expected)
    by_query = model.all_composition_scores("Q")[0, 1, 2, 3]
    attended = model.QK[2, 3].AB
    torch.testing.assert_close(by_query, (left @ attended).norm() / left.norm() / attended.norm())
    by_key = model.all_composition_scores("K")[0, 1, 2, 3]
    torch.testing.assert_close(by_key, (left @ attended.T).norm() / left.norm() / attended.norm())
    assert scores[2, 3, 0].abs().max() == scores[1, 0, 1].abs().max() == 0
    assert scores.head_labels[5] == "L1H1"
    with pytest.raises(ValueError, match="'Q', 'K' or 'V', got 'X'"):
        model.all_composition_scores("X")


@pytest.mark.full
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_with_a_decoder_has_heads_in_both(name: str):
    hf, processor = build(name)
    model = HookedVLM(hf, processor=processor)
    labels = model.all_head_labels
    assert (labels[0], labels[-1], len(labels)) == ("EL0H0", "DL2H3", 24)
    with pytest.raises(ValueError, match="has two streams"):
        model.all_composition_scores("Q")


def test_embedding_and_unembedding_are_called_as_modules(model: HookedVLM, request: Any):
    tokens = torch.tensor([[5, 6, 7]])
    name = request.node.callspec.params["model"]
    inputs = example(name, model.hf_model, model.processor, "image")
    logits, cache = model.run_with_cache(inputs)
    stream = model._language.ln_final(cache["resid_post", -1])
    torch.testing.assert_close(model.unembed(stream), logits, rtol=1e-5, atol=1e-5)
    embedded, rows = model.embed(tokens), model.embed.W_E[tokens]
    scale = embedded.norm() / rows.norm()
    assert (scale - 1).abs() < 1e-5 or "gemma" in name  # which scales itself
    torch.testing.assert_close(embedded, rows * scale, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.unembed.W_U, model.W_U)
    assert torch.equal(model.unembed.b_U, model.b_U)


def test_the_loss_of_logits_and_tokens_is_the_models(llava: Tiny):
    model = llava.model
    inputs = llava.inputs("batch")
    logits, loss = model(dict(inputs), return_type="both")
    again = model.loss_fn(logits, inputs["input_ids"], inputs["attention_mask"])
    assert torch.equal(loss, again)
    each = model.loss_fn(logits, inputs["input_ids"], inputs["attention_mask"], per_token=True)
    assert each.shape == (3, inputs["input_ids"].shape[1] - 1)


@pytest.mark.parametrize("given", ["what is the circle ? the", "tokens", "inputs"])
def test_where_a_token_stands(llava: Tiny, given: str):
    model, text = llava.model, "what is the circle ? the"
    tokens = model.to_tokens(text)
    made: Any = {"tokens": tokens[0], "inputs": llava.inputs("image")}.get(given, given)
    if given == "inputs":
        ids = made["input_ids"][0].tolist()
        assert model.get_token_position("circle", made) == ids.index(
            model.to_single_token("circle")
        )
        return
    assert model.get_token_position("the", made) == 3
    assert model.get_token_position(model.to_single_token("the"), made, mode="last") == 6
    with pytest.raises(ValueError, match=r"'red'\) does not occur"):
        model.get_token_position("red", made)
    with pytest.raises(ValueError, match="'first' or 'last'"):
        model.get_token_position("the", made, mode="all")
    with pytest.raises(ValueError, match=r"one prompt, got shape \[2, 7\]"):
        model.get_token_position("the", tokens.repeat(2, 1))


def test_an_empty_text_is_its_first_token(llava: Tiny):
    assert llava.model.to_tokens("").tolist() == [[1]]
    assert llava.model.to_tokens("", prepend_bos=False).shape == (1, 0)
    assert llava.model.to_str_tokens("") == ["<bos>"]

"""Low-rank adapters: nothing at first, and in the end part of the weights."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaModel

from vlm_lens.shapes_smollm2.adapters import PROJECTIONS, add_adapters, merge_adapters


def tiny() -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaModel(config).eval()


TOKENS = torch.tensor([[1, 5, 7, 9]])


def test_an_adapter_adds_nothing_at_first():
    model = tiny()
    before = model(TOKENS).last_hidden_state
    added = add_adapters(model.layers, rank=3)
    assert list(added) == [f"{layer}.{name}" for layer in (0, 1) for name in PROJECTIONS]
    assert torch.equal(model(TOKENS).last_hidden_state, before)


def test_merged_weights_compute_what_the_adapters_did():
    model, plain = tiny(), tiny()
    added = add_adapters(model.layers, rank=3)
    weights = {}
    for name, adapter in added.items():
        torch.nn.init.normal_(adapter.b)
        weights |= {f"{name}.a": adapter.a.detach(), f"{name}.b": adapter.b.detach()}
    kept = plain.layers[0].mlp.down_proj.weight.clone()
    merge_adapters(plain.layers, weights)
    expected = model(TOKENS).last_hidden_state
    torch.testing.assert_close(plain(TOKENS).last_hidden_state, expected)
    assert not torch.allclose(expected, tiny()(TOKENS).last_hidden_state)
    assert torch.equal(plain.layers[0].mlp.down_proj.weight, kept)

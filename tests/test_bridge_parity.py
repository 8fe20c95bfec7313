"""At hook points that TransformerLens' own bridge has too, the values are the same."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.model_bridge.sources.transformers import helpers

from tests.tiny import Tiny, build_tiny


@pytest.fixture(scope="module")
def pair() -> tuple[Tiny, object]:
    """The same weights under HookedVLM and under TransformerBridge."""
    # The bridge pip-installs torchvision (and with it another torch) when it thinks it needs it.
    os.environ["PIP_NO_INDEX"] = "1"
    helpers._ensure_torchvision = lambda: False
    tiny = build_tiny("clip-llama")
    hf = copy.deepcopy(tiny.hf)
    hf.set_attn_implementation("eager")
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)
    return tiny, bridge


SHARED = [
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_z",
    "attn.hook_pattern",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "ln1.hook_normalized",
    "ln1.hook_scale",
    "ln2.hook_normalized",
    "ln2.hook_scale",
]


def assert_near(actual, expected):
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=1e-4, atol=1e-4)


def run_both(pair, kind: str):
    tiny, bridge = pair
    inputs = tiny.inputs(kind)
    arguments = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        ours = tiny.model.run_with_cache(
            inputs, names_filter=["hook_embed", "blocks.*", "ln_final.*"]
        )
        return ours, bridge.run_with_cache(inputs.input_ids, **arguments)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_values_equal_those_of_transformer_bridge(pair, kind: str):
    (logits, ours), (their_logits, theirs) = run_both(pair, kind)
    assert_near(logits, their_logits)
    names = [f"blocks.{layer}.{site}" for layer in range(3) for site in SHARED]
    for name in [*names, "ln_final.hook_scale", "ln_final.hook_normalized"]:
        assert_near(ours[name], theirs.cache_dict[name])


@pytest.mark.parametrize("kind", ["text", "image"])
def test_scores_equal_where_attention_is_allowed(pair, kind: str):
    (_, ours), (_, theirs) = run_both(pair, kind)
    for layer in range(3):
        name = f"blocks.{layer}.attn.hook_attn_scores"
        allowed = ours[name] > -1e30
        assert_near(ours[name][allowed], theirs.cache_dict[name][allowed])


def test_the_embedding_differs_at_image_positions_only(pair):
    """The bridge names the token embedding; here it is where the residual stream starts."""
    tiny, _ = pair
    (_, ours), (_, theirs) = run_both(pair, "image")
    image = tiny.inputs("image").positions_mask("image")
    assert_near(ours["hook_embed"][~image], theirs["hook_embed"][~image])
    assert (ours["hook_embed"] - theirs["hook_embed"])[image].abs().max() > 0.1


@pytest.mark.parametrize(
    "name", ["W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out", "W_E", "W_U"]
)
def test_weights_have_the_same_layout(pair, name: str):
    tiny, bridge = pair
    assert torch.equal(getattr(tiny.model, name), getattr(bridge, name))


def test_sizes_agree(pair):
    tiny, bridge = pair
    for name in (
        "d_model",
        "d_head",
        "n_heads",
        "n_layers",
        "d_mlp",
        "d_vocab",
        "n_ctx",
        "gated_mlp",
    ):
        assert getattr(tiny.model.cfg, name) == getattr(bridge.cfg, name), name

"""TransformerLens' own cache methods and tools run on a HookedVLM and give right numbers."""

from __future__ import annotations

import pytest
import torch
from transformer_lens import patching
from transformer_lens.head_detector import detect_head
from transformer_lens.model_protocol import (
    TransformerLensModel,
    TransformerLensModelWithWeights,
)

from tests.tiny import Tiny
from vlm_lens.hooks import HookNameError


def assert_near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_the_model_satisfies_transformer_lens_protocols(tiny: Tiny):
    assert isinstance(tiny.model, TransformerLensModel)
    assert isinstance(tiny.model, TransformerLensModelWithWeights)


@pytest.mark.parametrize("kind", ["text", "image", "batch"])
def test_the_parts_of_the_residual_stream_add_up(tiny: Tiny, kind: str):
    _, cache = tiny.model.run_with_cache(tiny.inputs(kind))
    parts, labels = cache.decompose_resid(return_labels=True)
    assert labels[:3] == ["embed", "0_attn_out", "0_mlp_out"]
    assert_near(parts.sum(0), cache["resid_post", -1])
    for layer in range(3):
        assert_near(cache.decompose_resid(layer, mlp_input=True).sum(0), cache["resid_mid", layer])
    heads = cache.get_full_resid_decomposition(expand_neurons=True)
    assert_near(heads.sum(0), cache["resid_post", -1])
    assert_near(cache.get_full_resid_decomposition(2, mlp_input=True).sum(0), cache["resid_mid", 2])


def test_logit_attributions_add_up_to_the_logits(tiny: Tiny):
    model = tiny.model
    logits, cache = model.run_with_cache(tiny.inputs("image"))
    parts = cache.decompose_resid()
    for token in ("red", "circle"):
        attributions = cache.logit_attrs(parts, token)
        assert_near(attributions.sum(0), logits[..., model.to_single_token(token)])
    differences = cache.logit_attrs(parts, "red", incorrect_tokens="blue").sum(0)
    red, blue = (model.to_single_token(word) for word in ("red", "blue"))
    assert_near(differences, logits[..., red] - logits[..., blue])


def test_single_neurons_add_up_to_what_the_mlps_do_to_a_logit(tiny: Tiny):
    model = tiny.model
    _, cache = model.run_with_cache(tiny.inputs("image"))
    direction = model.tokens_to_residual_directions("red")
    neurons, labels = cache.stack_neuron_results(
        -1, pos_slice=-1, return_labels=True, apply_ln=True, project_output_onto=direction
    )
    assert labels[0] == "L0N0"
    assert len(labels) == 3 * model.cfg.d_mlp
    mlps = cache.decompose_resid(mode="mlp", incl_embeds=False)
    biases = sum(block.mlp.b_out for block in model.blocks) / cache["ln_final.hook_scale"][:, -1]
    expected = cache.logit_attrs(mlps, "red").sum(0)[:, -1] - biases @ direction
    assert_near(neurons.sum(0), expected)


def test_neuron_results_are_activation_times_output_weight(tiny: Tiny):
    _, cache = tiny.model.run_with_cache(tiny.inputs("text"))
    results = cache.get_neuron_results(1, neuron_slice=[5], pos_slice=2)
    expected = cache["post", 1][0, 2, 5] * tiny.model.blocks[1].mlp.W_out[5]
    assert_near(results[0, 0], expected)


@pytest.mark.parametrize("mlp_input", [False, True])
def test_norms_inside_the_model_can_be_applied_to_a_stack(tiny: Tiny, mlp_input: bool):
    _, cache = tiny.model.run_with_cache(tiny.inputs("image"))
    name = "ln2" if mlp_input else "ln1"
    parts = cache.decompose_resid(1, mlp_input=mlp_input)
    normalized = cache.apply_ln_to_stack(parts, 1, mlp_input=mlp_input).sum(0)
    assert_near(normalized, cache[f"blocks.1.{name}.hook_normalized"])


def test_head_results_add_up_to_attention(tiny: Tiny):
    _, cache = tiny.model.run_with_cache(tiny.inputs("image"))
    cache.compute_head_results()
    heads = cache["result", 1].sum(-2) + tiny.model.blocks[1].attn.b_O
    assert_near(heads, cache["attn_out", 1])


def test_patterns_not_kept_are_computed_when_asked_for(tiny: Tiny):
    for kind in ("image", "batch"):
        inputs = tiny.inputs(kind)
        _, cache = tiny.model.run_with_cache(inputs)
        _, kept = tiny.model.run_with_cache(inputs, names_filter="*attn.hook_[ap]*")
        assert set(cache.keys()) == set(cache) == set(tiny.model.hook_dict)
        assert len(kept) == 12
        for name in kept:
            assert torch.equal(cache[name], kept[name])
        assert torch.equal(cache["pattern", -1], kept["pattern", 2])
        assert len(cache) == len(tiny.model.hook_dict) == len(list(cache.items()))
        _, some = tiny.model.run_with_cache(inputs, pos_slice=(2, 4))
        for name in ("blocks.0.attn.hook_pattern", "blocks.1.attn.hook_attn_scores"):
            assert torch.equal(some[name], cache[name][:, :, 2:4])
        _, both = tiny.model.run_with_cache(inputs)
        both.to(torch.float64).to("cpu")
        for name in ("blocks.0.attn.hook_pattern", "blocks.0.hook_mlp_out"):
            assert torch.equal(both[name], cache[name].double())


def test_gradients_of_patterns_need_no_filter(llava: Tiny):
    inputs, name = llava.inputs("image"), "blocks.1.attn.hook_pattern"
    with torch.enable_grad():
        loss, everything = llava.model.run_with_cache(inputs, return_type="loss", incl_bwd=True)
        _, some = llava.model.run_with_cache(
            inputs, return_type="loss", names_filter=name, incl_bwd=True
        )
    assert_near(everything[f"{name}_grad"], some[f"{name}_grad"])
    assert everything[f"{name}_grad"].abs().max() > 0
    assert torch.equal(loss, llava.model(inputs, return_type="loss"))
    assert f"{name}_grad" not in everything.sizes
    llava.hf.zero_grad()


def test_computed_patterns_show_the_intervention_they_were_made_under(llava: Tiny):
    with llava.model.hooks([("blocks.1.attn.hook_q", lambda t, hook: t * 0)]):
        _, cache = llava.model.run_with_cache(llava.inputs("text"))
    assert_near(cache["pattern", 1][0, 0, 3, :4], torch.full((4,), 0.25))


def test_head_detector_finds_a_planted_previous_token_head(llava: Tiny):
    """The planted head scores 1, and it alone."""

    def previous_token(pattern, hook):
        planted = pattern.clone()
        planted[:, 2] = torch.eye(pattern.shape[-1]).roll(-1, dims=1).tril()
        planted[:, 2, 0, 0] = 1
        return planted

    def score(hooks):
        with llava.model.hooks(hooks):
            _, cache = llava.model.run_with_cache(
                text, names_filter="blocks.*pattern", remove_batch_dim=True
            )
        return detect_head(llava.model, text, "previous_token_head", cache=cache)

    text = "what color is the circle ?"
    clean = detect_head(llava.model, text, "previous_token_head")
    assert_near(clean, score([("hook_embed", lambda t, hook: None)]))
    planted = score([("blocks.1.attn.hook_pattern", previous_token)])
    assert planted[1, 2] > 0.8 > clean.max()
    assert planted.argmax() == 1 * 4 + 2


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["text", "image"])
def test_patching_the_residual_stream_restores_the_clean_logit(tiny: Tiny, kind: str):
    """Patching all of a position's last layer moves the answer; earlier positions move nothing."""
    model = tiny.model
    images = tiny.inputs(kind).images[0] or None
    clean = model.prepare(images=images, text="what color is the circle ?")
    given = model.prepare(images=images, text="what color is the two ?")
    clean_logits, cache = model.run_with_cache(clean)

    def metric(logits):
        return logits[0, -1, model.to_single_token("red")]

    patched = patching.get_act_patch_resid_pre(model, given, cache, metric)
    assert patched.shape == (3, clean.shape[1])
    assert_near(patched[0, -2], metric(clean_logits))
    assert_near(patched[2, 3], metric(model(given)))
    per_head = patching.get_act_patch_attn_head_out_all_pos(model, given, cache, metric)
    assert per_head.shape == (3, 4)
    per_pattern = patching.get_act_patch_attn_head_pattern_all_pos(model, given, cache, metric)
    assert not torch.allclose(per_pattern, metric(model(given)))
    by_kv_head = patching.get_act_patch_attn_head_k_all_pos(model, given, cache, metric)
    assert by_kv_head.shape == (3, model.cfg.n_key_value_heads)


def test_token_types_of_activations(tiny: Tiny):
    inputs = tiny.inputs("batch")
    _, cache = tiny.model.run_with_cache(inputs)
    name = "blocks.1.mlp.hook_post"
    rows = [
        cache[name][i, token_map.positions("image")] for i, token_map in enumerate(inputs.token_map)
    ]
    assert torch.equal(cache.image(name), torch.cat(rows))
    assert torch.equal(cache.image(name, batch=2), rows[2])
    assert cache.image(name, batch=1).shape == (0, 64)
    texts = [cache[name][i, m.positions("text")] for i, m in enumerate(inputs.token_map)]
    assert torch.equal(cache.text(("post", 1)), torch.cat(texts))
    with pytest.raises(ValueError, match="every position is an image patch"):
        cache.image("projector.hook_out")


def test_token_types_without_the_batch_dimension(llava: Tiny):
    inputs = llava.inputs("image")
    _, cache = llava.model.run_with_cache(inputs, remove_batch_dim=True)
    assert cache["post", 0].ndim == 2
    assert cache["pattern", 0].ndim == 3
    assert cache.image(("post", 0)).shape == (16, 64)


def test_bare_tokens_have_no_types(llava: Tiny):
    _, cache = llava.model.run_with_cache("red")
    with pytest.raises(ValueError, match="model.prepare"):
        cache.image(("post", 0))


def test_what_is_not_kept_is_refused_with_the_nearest_names(llava: Tiny):
    _, cache = llava.model.run_with_cache("red", names_filter="blocks.*.mlp.hook_post")
    for key in ("blocks.0.mlp.hook_pre", ("pattern", 0), ("post", 7)):
        with pytest.raises(HookNameError, match="holds 3 activations.*Nearest"):
            cache[key]


def test_dtype_device_and_positions_of_what_is_kept(llava: Tiny):
    inputs = llava.inputs("image")
    _, full = llava.model.run_with_cache(inputs)
    _, half = llava.model.run_with_cache(inputs, dtype=torch.bfloat16, device="cpu")
    assert {value.dtype for value in half.cache_dict.values()} == {torch.bfloat16}
    assert half["pattern", 0].dtype == torch.bfloat16
    _, last = llava.model.run_with_cache(inputs, pos_slice=-1)
    for name in ("blocks.0.mlp.hook_post", "blocks.0.attn.hook_q", "ln_final.hook_scale"):
        assert torch.equal(last[name], full[name][:, -1:])
    assert torch.equal(last["projector.hook_out"], full["projector.hook_out"])
    _, some = llava.model.run_with_cache(inputs, pos_slice=(2, 5), names_filter="*hook_resid_*")
    assert torch.equal(some["resid_post", 1], full["resid_post", 1][:, 2:5])
    _, plain = llava.model.run_with_cache(inputs, return_cache_object=False)
    assert type(plain) is dict


def test_an_activation_kept_is_not_changed_by_a_later_hook(llava: Tiny):
    name = "blocks.1.hook_resid_mid"
    _, clean = llava.model.run_with_cache(llava.inputs("text"))
    kept = llava.model.add_caching_hooks(name)
    with llava.model.hooks([(name, lambda t, hook: t + 1)]):
        llava.model(llava.inputs("text"))
    llava.model.reset_hooks()
    assert torch.equal(kept[name], clean[name])

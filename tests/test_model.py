"""A HookedVLM is the Hugging Face model, bit for bit, until a hook changes something."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from tests.tiny import INPUT_KINDS, Tiny, build_tiny
from vlm_lens import HookedVLM
from vlm_lens.architectures import ArchitectureError


def read(tensor, hook):
    """A hook that only looks."""


@pytest.mark.parametrize("kind", INPUT_KINDS)
@pytest.mark.parametrize("gradients", [False, True])
def test_logits_are_bit_identical_idle_and_while_reading(tiny: Tiny, kind: str, gradients: bool):
    inputs = tiny.inputs(kind)
    names = "blocks.*" if kind == "text" else "*"
    with torch.set_grad_enabled(gradients):
        expected = tiny.hf(**inputs).logits
        assert torch.equal(tiny.model(inputs), expected)
        assert torch.equal(tiny.model.run_with_cache(inputs)[0], expected)
        assert torch.equal(tiny.model.run_with_hooks(inputs, fwd_hooks=[(names, read)]), expected)
    assert torch.equal(tiny.hf(**inputs).logits, expected)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_bit_identical_in_each_dtype_and_attention(implementation, dtype):
    tiny = build_tiny("clip-qwen2", dtype=dtype)
    tiny.hf.set_attn_implementation(implementation)
    for kind in INPUT_KINDS:
        inputs = tiny.inputs(kind).to(dtype)
        expected = tiny.hf(**inputs).logits
        names = "blocks.*" if kind == "text" else "*"
        assert torch.equal(tiny.model.run_with_hooks(inputs, fwd_hooks=[(names, read)]), expected)
    assert tiny.hf.config.text_config._attn_implementation == implementation


def test_every_hook_point_fires_once_on_an_image(tiny: Tiny):
    counts = dict.fromkeys(tiny.model.hook_dict, 0)

    def count(tensor, hook):
        counts[hook.name] += 1

    tiny.model.run_with_hooks(tiny.inputs("image"), fwd_hooks=[("*", count)])
    assert set(counts.values()) == {1}


@pytest.mark.full
def test_writing_to_any_hook_point_changes_the_logits(tiny: Tiny):
    """Except in the blocks after the one that LLaVA's projector reads: they feed nothing."""
    inputs, model = tiny.inputs("image"), tiny.model
    with torch.no_grad():
        clean = model(inputs)
        for name in model.hook_dict:
            changed = model.run_with_hooks(
                inputs, fwd_hooks=[(name, lambda t, hook: t * 1.5 + 0.1)]
            )
            dead = name.startswith("vision_encoder.blocks.2.")
            assert torch.equal(clean, changed) == dead, name


def test_writing_in_place_counts_as_writing(tiny: Tiny):
    def halve(tensor, hook):
        tensor[:] = tensor * 0.5

    inputs, model = tiny.inputs("image"), tiny.model
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            clean = model(inputs)
            for name in (
                "blocks.1.hook_resid_mid",
                "blocks.1.attn.hook_pattern",
                "ln_final.hook_scale",
            ):
                out_of_place = model.run_with_hooks(
                    inputs, fwd_hooks=[(name, lambda t, hook: t * 0.5)]
                )
                in_place = model.run_with_hooks(inputs, fwd_hooks=[(name, halve)])
                assert torch.equal(in_place, out_of_place)
                assert not torch.equal(clean, in_place)


def test_hook_values_satisfy_the_equations_of_the_block(tiny: Tiny):
    _, cache = tiny.model.run_with_cache(tiny.inputs("image"), names_filter="*")
    for layer, block in enumerate(tiny.model.blocks):
        pre, mid = cache["resid_pre", layer], cache["resid_mid", layer]
        torch.testing.assert_close(mid, pre + cache["attn_out", layer])
        torch.testing.assert_close(cache["resid_post", layer], mid + cache["mlp_out", layer])
        gate, up = cache["pre", layer], cache[f"blocks.{layer}.mlp.hook_pre_linear"]
        act = cache[f"blocks.{layer}.mlp.hook_act"]
        torch.testing.assert_close(act, F.silu(gate))
        torch.testing.assert_close(cache["post", layer], act * up)
        torch.testing.assert_close(
            cache["post", layer] @ block.mlp.W_out + block.mlp.b_out, cache["mlp_out", layer]
        )
        normalized = cache[f"blocks.{layer}.ln2.hook_normalized"] * block.ln2.w
        torch.testing.assert_close(normalized @ block.mlp.W_gate, gate)
        torch.testing.assert_close(normalized @ block.mlp.W_in + block.mlp.b_in, up)


def test_hook_values_satisfy_the_equations_of_attention(tiny: Tiny):
    _, cache = tiny.model.run_with_cache(tiny.inputs("batch"), names_filter="*")
    cfg = tiny.model.cfg
    for layer, block in enumerate(tiny.model.blocks):
        normalized = cache[f"blocks.{layer}.ln1.hook_normalized"] * block.ln1.w
        q = torch.einsum("bpd,hde->bphe", normalized, block.attn.W_Q) + block.attn.b_Q
        torch.testing.assert_close(q, cache["q", layer], rtol=1e-4, atol=1e-5)
        repeat = cfg.n_heads // cfg.n_key_value_heads
        k, v = (cache[name, layer].repeat_interleave(repeat, dim=2) for name in ("rot_k", "v"))
        scores = torch.einsum("bqhe,bkhe->bhqk", cache["rot_q", layer], k) / cfg.d_head**0.5
        allowed = cache["attn_scores", layer] > -1e30
        torch.testing.assert_close(
            scores[allowed], cache["attn_scores", layer][allowed], rtol=1e-4, atol=1e-4
        )
        pattern = cache["pattern", layer]
        real = tiny.inputs("batch").attention_mask.bool()
        rows = pattern.sum(-1).transpose(1, 2)[real]
        torch.testing.assert_close(rows, torch.ones_like(rows))
        assert pattern.triu(1).transpose(1, 2)[real].abs().max() == 0
        z = torch.einsum("bhqk,bkhe->bqhe", pattern, v)
        torch.testing.assert_close(z[real], cache["z", layer][real], rtol=1e-4, atol=1e-5)
        out = torch.einsum("bqhe,hed->bqd", cache["z", layer], block.attn.W_O) + block.attn.b_O
        torch.testing.assert_close(out, cache["attn_out", layer], rtol=1e-4, atol=1e-5)


def test_the_encoder_and_projector_satisfy_their_equations(tiny: Tiny):
    _, cache = tiny.model.run_with_cache(tiny.inputs("images"), names_filter="*")
    vision, projector = tiny.model.vision_encoder, tiny.model.projector
    for layer, block in enumerate(vision.blocks):
        at = f"vision_encoder.blocks.{layer}."
        normalized = cache[at + "ln1.hook_normalized"] * block.ln1.w + block.ln1.b
        q = torch.einsum("bpd,hde->bphe", normalized, block.attn.W_Q) + block.attn.b_Q
        torch.testing.assert_close(q, cache[at + "attn.hook_q"], rtol=1e-4, atol=1e-4)
        normalized = cache[at + "ln2.hook_normalized"] * block.ln2.w + block.ln2.b
        pre = normalized @ block.mlp.W_in + block.mlp.b_in
        torch.testing.assert_close(pre, cache[at + "mlp.hook_pre"], rtol=1e-4, atol=1e-4)
        out = cache[at + "mlp.hook_post"] @ block.mlp.W_out + block.mlp.b_out
        torch.testing.assert_close(out, cache[at + "hook_mlp_out"], rtol=1e-4, atol=1e-4)
    out = cache["vision_encoder.hook_out"]
    read_by_projector = out[:, 1:] if tiny.name.startswith("clip") else out
    assert torch.equal(read_by_projector, cache["projector.hook_in"])
    pre = cache["projector.hook_in"] @ projector.mlp.W_in + projector.mlp.b_in
    torch.testing.assert_close(pre, cache["projector.mlp.hook_pre"], rtol=1e-4, atol=1e-4)
    tokens = cache["projector.mlp.hook_post"] @ projector.mlp.W_out + projector.mlp.b_out
    torch.testing.assert_close(tokens, cache["projector.hook_out"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cache.image("hook_embed"), tokens.flatten(0, 1))


def test_a_written_pattern_is_what_the_model_uses(llava: Tiny):
    """Attention that looks only at itself hands each position its own value."""
    inputs = llava.inputs("image")

    def look_at_yourself(pattern, hook):
        return torch.eye(pattern.shape[-1]).expand_as(pattern)

    with llava.model.hooks([("blocks.0.attn.hook_pattern", look_at_yourself)]):
        _, cache = llava.model.run_with_cache(inputs, names_filter=["blocks.0.attn.hook_[vz]"])
    torch.testing.assert_close(cache["z", 0], cache["v", 0])


def test_written_scores_are_what_the_softmax_reads(llava: Tiny):
    with llava.model.hooks([("blocks.0.attn.hook_attn_scores", lambda t, hook: t * 0)]):
        _, cache = llava.model.run_with_cache(
            llava.inputs("image"), names_filter="*.0.attn.hook_pattern"
        )
    pattern = cache["pattern", 0]
    torch.testing.assert_close(pattern, torch.full_like(pattern, 1 / pattern.shape[-1]))


def test_written_rotated_queries_change_the_pattern(llava: Tiny):
    with llava.model.hooks([("blocks.1.attn.hook_rot_q", lambda t, hook: t * 0)]):
        _, cache = llava.model.run_with_cache(llava.inputs("image"))
    assert torch.allclose(cache["pattern", 1][0, 0, 3, :4], torch.full((4,), 0.25))


def test_a_write_to_resid_mid_reaches_the_residual_branch(llava: Tiny):
    """Adding d to the stream between attention and MLP must add d to what leaves the block."""
    shift = torch.randn(llava.model.cfg.d_model)
    hook = ("blocks.2.hook_resid_mid", lambda t, hook: t + shift)
    with llava.model.hooks([hook]):
        _, cache = llava.model.run_with_cache(llava.inputs("text"))
    _, clean = llava.model.run_with_cache(llava.inputs("text"))
    torch.testing.assert_close(
        cache["resid_post", 2] - cache["mlp_out", 2], clean["resid_mid", 2] + shift
    )


@pytest.mark.parametrize(
    "name",
    [
        "blocks.1.mlp.hook_post",
        "blocks.1.hook_resid_mid",
        "blocks.0.attn.hook_pattern",
        "blocks.1.attn.hook_rot_k",
        "blocks.2.ln1.hook_normalized",
        "vision_encoder.blocks.0.mlp.hook_post",
        "projector.mlp.hook_post",
        "hook_embed",
    ],
)
def test_gradients_flow_through_hook_points(llava: Tiny, name: str):
    """The gradient at a hook point predicts what a small push there does to the loss."""
    inputs = llava.inputs("image")
    loss, cache = llava.model.run_with_cache(
        inputs, return_type="loss", names_filter=name, incl_bwd=True
    )
    gradient = cache[name + "_grad"]
    push = torch.randn_like(cache[name]) * 1e-3
    with torch.no_grad():
        up, down = (
            llava.model.run_with_hooks(
                inputs, return_type="loss", fwd_hooks=[(name, lambda t, hook, s=s: t + s * push)]
            )
            for s in (1, -1)
        )
    llava.model.zero_grad()
    torch.testing.assert_close((gradient * push).sum() * 2, up - down, rtol=0.05, atol=2e-5)


@pytest.mark.parametrize(
    "name", ["blocks.2.hook_resid_mid", "ln_final.hook_scale", "blocks.2.attn.hook_pattern"]
)
def test_a_hook_that_detaches_changes_the_gradient_and_no_value(llava: Tiny, name: str):
    """As much as one that returns a detached copy does."""
    inputs, model = llava.inputs("image"), llava.model

    def run(hook):
        kept = []
        hooks = [("blocks.1.hook_resid_post", lambda t, hook: kept.append(t)), (name, hook)]
        logits = model.run_with_hooks(inputs, fwd_hooks=hooks)
        return logits, torch.autograd.grad(logits[0, -1, 7], kept[0])[0]

    plain, gradient = run(lambda t, hook: None)
    detached, without = run(lambda t, hook: t.detach())
    _, expected = run(lambda t, hook: t.detach().clone())
    assert torch.equal(plain, detached)
    torch.testing.assert_close(without, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gradient, without, rtol=1e-2)


@pytest.mark.parametrize(
    "name", ["blocks.1.hook_resid_mid", "ln_final.hook_scale", "blocks.1.attn.hook_pattern"]
)
def test_a_steering_vector_can_be_trained_in_a_frozen_model(llava: Tiny, name: str):
    model = copy.deepcopy(llava.model).requires_grad_(False)
    factor = torch.ones((), requires_grad=True)
    with model.hooks([(name, lambda t, hook: t * factor)]):
        loss = model(llava.inputs("image"), return_type="loss")
    gradient = torch.autograd.grad(loss, factor)[0]
    with torch.no_grad():
        up, down = (
            model.run_with_hooks(
                llava.inputs("image"), "loss", fwd_hooks=[(name, lambda t, hook, f=f: t * f)]
            )
            for f in (1.001, 0.999)
        )
    torch.testing.assert_close(gradient, (up - down) / 0.002, rtol=0.05, atol=2e-3)


def test_backward_hooks_change_gradients(llava: Tiny):
    inputs, model = llava.inputs("image"), llava.model
    weight = model.projector.hf_module.linear_1.weight
    model.zero_grad()
    with model.hooks(bwd_hooks=[("projector.hook_out", lambda grad, hook: grad * 0)]):
        model(inputs, return_type="loss").backward()
    assert weight.grad.abs().max() == 0
    model.zero_grad()


def test_hooks_added_to_a_cached_run_see_what_earlier_hooks_returned(llava: Tiny):
    name = "blocks.0.mlp.hook_post"
    with llava.model.hooks([(name, lambda t, hook: t * 0)]):
        _, cache = llava.model.run_with_cache(llava.inputs("text"), names_filter=name)
    assert cache["post", 0].abs().max() == 0


def test_loss_is_the_mean_cross_entropy_of_what_counts(llava: Tiny):
    model = llava.model
    inputs = model.prepare(
        images=llava.inputs("image").images[0], text="what color ?", answer="red . blue"
    )
    log_probs = model(inputs).log_softmax(-1)
    positions = inputs.token_map[0].positions("answer")
    slow = [-log_probs[0, p - 1, inputs.input_ids[0, p]] for p in positions]
    assert len(slow) >= 3
    torch.testing.assert_close(model(inputs, return_type="loss"), torch.stack(slow).mean())
    each = model(inputs, return_type="loss", loss_per_token=True)
    assert each.shape == (1, inputs.shape[1] - 1)
    assert (each != 0).sum() == len(slow)


def test_loss_without_an_answer_leaves_image_and_padding_out(llava: Tiny):
    inputs = llava.inputs("batch")
    each = llava.model(inputs, return_type="loss", loss_per_token=True)
    for row, token_map in zip(each, inputs.token_map, strict=True):
        for kind in ("image", "padding"):
            positions = [p - 1 for p in token_map.positions(kind) if p > 0]
            assert row[positions].abs().sum() == 0
    logits, loss = llava.model(inputs, return_type="both")
    assert torch.equal(logits, llava.model(inputs))
    torch.testing.assert_close(loss, each.sum() / (each != 0).sum())


def test_raw_text_and_tokens_are_accepted_like_in_transformer_lens(llava: Tiny):
    model = llava.model
    tokens = model.to_tokens("what color is the circle ?")
    assert torch.equal(model("what color is the circle ?"), model(tokens))
    assert torch.equal(model(tokens[0]), model(tokens))
    batch = model(["what color is the circle ?", "red"])
    torch.testing.assert_close(batch[1, -1], model("red")[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.zeros(1, 3), TypeError, "float32 of shape"),
        (3.5, TypeError, "3.5"),
        ("", ValueError, "none of them empty"),
        (torch.tensor([[1, 4, 4, 5]]), ValueError, "2 image positions but no image"),
        (torch.ones(1, 129, dtype=torch.long), ValueError, "at most 128 positions.*got 129"),
        ("red " * 128, ValueError, "at most 128 positions.*got 129"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(llava: Tiny, given, error, message):
    with pytest.raises(error, match=message):
        llava.model(given)


@pytest.mark.usefixtures("unchecked")
def test_unknown_return_type_is_refused(llava: Tiny):
    with pytest.raises(ValueError, match="'logits', 'loss', 'both' or None, got 'probs'"):
        llava.model("red", return_type="probs")
    assert llava.model("red", return_type=None) is None


def test_wrapping_an_unsupported_model_lists_what_is_supported():
    class Other(torch.nn.Module):
        pass

    with pytest.raises(
        ArchitectureError, match="LlavaForConditionalGeneration.*got Other.*To add one"
    ):
        HookedVLM(Other())


def test_a_model_whose_parts_are_elsewhere_is_refused_at_load(llava: Tiny):
    broken = copy.deepcopy(llava.hf)
    del broken.model.language_model.layers[1].mlp.up_proj
    with pytest.raises(ArchitectureError, match="mlp.up_proj"):
        HookedVLM(broken)
    short = copy.deepcopy(llava.hf)
    del short.model.language_model.layers[1]
    with pytest.raises(
        ArchitectureError, match="Expected 3 blocks at 'model.language_model.layers'"
    ):
        HookedVLM(short)


def test_parameters_appear_once_and_the_model_moves_as_one(llava: Tiny):
    model = HookedVLM(copy.deepcopy(llava.hf))
    ours = [id(p) for p in model.parameters()]
    assert ours == [id(p) for p in model.hf_model.parameters()]
    model.to(torch.float64)
    assert model.cfg.dtype == torch.float64
    assert model(llava.model.to_tokens("red")).dtype == torch.float64


def test_without_a_processor_text_is_refused_and_tokens_work(llava: Tiny):
    model = HookedVLM(llava.hf)
    assert torch.equal(model(torch.tensor([[1, 5, 6]])), llava.model(torch.tensor([[1, 5, 6]])))
    with pytest.raises(ValueError, match="processor=processor"):
        model("red")
    with pytest.raises(ValueError, match="prepare needs a processor"):
        model.prepare(text="red")


def test_a_copy_has_taps_in_its_own_model(llava: Tiny):
    twin = copy.deepcopy(llava.model)
    inputs = llava.inputs("image")
    with twin.hooks([("hook_embed", lambda t, hook: t * 0)]):
        assert not torch.equal(twin(inputs), llava.model(inputs))
    assert torch.equal(twin(inputs), llava.model(inputs))
    with (
        llava.model.hooks([("hook_embed", lambda t, hook: None)]),
        pytest.raises(RuntimeError, match="reset_hooks"),
    ):
        copy.deepcopy(llava.model)


def test_the_representation_is_one_line(llava: Tiny):
    text = repr(llava.model)
    assert text.endswith("vision encoder 3 x 48, language model 3 x 64 neurons; 123 hook points)")
    assert "LlavaForConditionalGeneration of 0.1M parameters" in text


@pytest.mark.parametrize("layer", [-1, -2, 1, [-2, -1], [0, 2]])
def test_any_choice_of_feature_layer_is_followed(layer):
    tiny = build_tiny("clip-llama", vision_feature_layer=layer)
    inputs = tiny.inputs("image")
    expected = tiny.hf(**inputs).logits
    logits, cache = tiny.model.run_with_cache(inputs, names_filter="*")
    assert torch.equal(logits, expected)
    out = cache["vision_encoder.hook_out"][:, 1:]
    assert torch.equal(out, cache["projector.hook_in"][..., -out.shape[-1] :])
    changed = tiny.model.run_with_hooks(
        inputs, fwd_hooks=[("vision_encoder.hook_out", lambda t, hook: t * 2)]
    )
    assert not torch.equal(changed, expected)

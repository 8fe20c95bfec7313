"""Direct effects against loops over neurons, TransformerLens, the logit, and real ablations."""

from __future__ import annotations

import pytest
import torch

from tests.families import build, example
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM, NeuronSet
from vlm_lens.analyses import DirectEffect, direct_effect
from vlm_lens.inputs import Inputs


def test_matches_a_loop_over_neurons(tiny: Tiny) -> None:
    inputs, token, position = tiny.inputs("image"), 7, -3
    effect = direct_effect(tiny.model, inputs, token=token, position=position)
    _, cache = tiny.model.run_with_cache(inputs)
    scale = cache["ln_final.hook_scale"][0, position, 0]
    direction = tiny.hf.lm_head.weight[token] * tiny.hf.model.language_model.norm.weight
    for layer in range(tiny.model.cfg.n_layers):
        down = tiny.hf.model.language_model.layers[layer].mlp.down_proj.weight
        activations = cache["post", layer][0, position]
        name = f"blocks.{layer}.mlp.hook_post"
        for neuron in range(tiny.model.cfg.d_mlp):
            expected = activations[neuron] * (down[:, neuron] @ direction) / scale
            torch.testing.assert_close(effect.scores[name][neuron], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(effect.activations[name], activations)


def test_matches_transformer_lens(tiny: Tiny) -> None:
    inputs = tiny.inputs("image")
    effect = direct_effect(tiny.model, inputs)
    _, cache = tiny.model.run_with_cache(inputs)
    neurons = cache.stack_neuron_results(layer=-1, pos_slice=-1)
    expected = cache.logit_attrs(neurons, tokens=effect.token, pos_slice=-1)[:, 0]
    torch.testing.assert_close(torch.cat(list(effect.scores.values())), expected)


@pytest.mark.parametrize("kind", ["text", "image", "images"])
def test_all_components_add_up_to_the_logit(tiny: Tiny, kind: str) -> None:
    inputs = tiny.inputs(kind)
    effect = direct_effect(tiny.model, inputs)
    logits, cache = tiny.model.run_with_cache(inputs)
    others = cache["hook_embed"][0, -1] + sum(
        cache["attn_out", layer][0, -1] + tiny.model.blocks[layer].mlp.b_out
        for layer in range(tiny.model.cfg.n_layers)
    )
    direction = tiny.model.tokens_to_residual_directions(effect.token)
    rest = (others @ direction) / cache["ln_final.hook_scale"][0, -1, 0]
    total = rest + sum(scores.sum() for scores in effect.scores.values())
    torch.testing.assert_close(total, logits[0, -1, effect.token])
    assert effect.logit == pytest.approx(total.item(), rel=1e-4)


@pytest.mark.parametrize("name", ["gemma3", "mllama"])
def test_counts_what_comes_between_the_mlp_and_the_stream(name: str) -> None:
    """A norm in Gemma 3, a gate in Mllama's blocks that attend to the image."""
    hf, processor = build(name)
    model = HookedVLM(hf, processor=processor)
    inputs = example(name, hf, processor, "image")
    effect = direct_effect(model, inputs, token=7)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
        mlps = cache.decompose_resid(mode="mlp", apply_ln=True, pos_slice=-1, incl_embeds=False)
        expected = mlps[:, 0] @ model.tokens_to_residual_directions(7)
    found = torch.stack([scores.sum() for scores in effect.scores.values()])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_is_what_zeroing_takes_away_in_the_last_layer_at_a_fixed_scale(llava: Tiny) -> None:
    inputs, name = llava.inputs("image"), "blocks.2.mlp.hook_post"
    effect = direct_effect(llava.model, inputs)
    clean, cache = llava.model.run_with_cache(inputs, names_filter="ln_final.hook_scale")
    scale = cache["ln_final.hook_scale"]
    for index in (0, 17, 63):
        ablate = NeuronSet.from_indices({name: [index]}).ablate()
        hooks = [*ablate, ("ln_final.hook_scale", lambda _, hook: scale)]  # noqa: ARG005
        without = llava.model.run_with_hooks(inputs, fwd_hooks=hooks)
        lost = (clean - without)[0, -1, effect.token]
        torch.testing.assert_close(effect.scores[name][index], lost, rtol=1e-3, atol=1e-5)


def test_explains_the_predicted_token_unless_told_otherwise(llava: Tiny) -> None:
    inputs = llava.inputs("image")
    logits = llava.model(inputs)
    effect = direct_effect(llava.model, inputs)
    assert effect.token == int(logits[0, -1].argmax())
    assert effect.logit == pytest.approx(logits[0, -1].max().item())
    assert effect.position == inputs.shape[1] - 1
    by_text = direct_effect(llava.model, inputs, token="red", position=3)
    assert (by_text.token, by_text.position) == (llava.model.to_single_token("red"), 3)
    assert by_text.logit == pytest.approx(logits[0, 3, by_text.token].item())


def test_takes_text_and_tokens(llava: Tiny) -> None:
    text = "is the square red ?"
    by_text = direct_effect(llava.model, text, token="left")
    by_tokens = direct_effect(llava.model, llava.model.to_tokens(text), token="left")
    for name, scores in by_text.scores.items():
        assert torch.equal(scores, by_tokens.scores[name])


def test_is_ranked_and_tabled(llava: Tiny) -> None:
    effect = direct_effect(llava.model, llava.inputs("image"))
    table = effect.to_dataframe(5)
    assert list(table.columns) == [
        *("rank", "component", "layer", "site", "index", "name", "direct_effect", "activation")
    ]
    assert table["direct_effect"].is_monotonic_decreasing
    assert table["direct_effect"][0] == pytest.approx(
        max(float(s.max()) for s in effect.scores.values())
    )
    best = effect.top(5)
    assert list(table["index"]) == [neuron.index for neuron in best]
    assert best.sizes[best[0].name] == llava.model.cfg.d_mlp
    assert "192 neurons at 3 hook points" in repr(effect)
    assert not any(scores.requires_grad for scores in effect.scores.values())


def test_holds_in_half_precision() -> None:
    exact, half = (
        build_tiny("clip-llama", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    expected = direct_effect(exact.model, exact.inputs("image"), token=7)
    effect = direct_effect(half.model, half.inputs("image").to(torch.bfloat16), token=7)
    for name, scores in effect.scores.items():
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected.scores[name], rtol=0.1, atol=0.02)


def test_refuses_what_it_cannot_explain(llava: Tiny) -> None:
    def run(inputs: Inputs, **options: int | str) -> DirectEffect:
        return direct_effect(llava.model, inputs, **options)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="expected one prompt, got a batch of 3"):
        run(llava.inputs("batch"))
    with pytest.raises(ValueError, match="single token"):
        run(llava.inputs("image"), token="red blue")
    with pytest.raises(IndexError, match="no token 999"):
        run(llava.inputs("image"), token=999)
    with pytest.raises(IndexError):
        run(llava.inputs("image"), position=99)

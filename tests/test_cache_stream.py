"""The residual stream in a cache: parts that add up to it, and norms whose weight counts once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens.tools.analysis import logit_lens
from transformers import Gemma2Config

from tests.families import KINDS, MODELS, build, example
from tests.families.base import TEXT, token_ids
from vlm_lens import HookedVLM
from vlm_lens.cache import ActivationCache

TOKENS = torch.tensor([5, 7])
POSITIONS: list[Any] = [None, -1, [1, 2]]


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest) -> tuple[HookedVLM, Any, Tensor, ActivationCache]:
    """A model, a batch for it (the widest that the family takes), its logits and its cache."""
    hf, processor = build(request.param)
    kind = "batch" if "batch" in KINDS[request.param] else "image"
    inputs = example(request.param, hf, processor, kind)
    model = HookedVLM(hf, processor=processor)
    with torch.no_grad():
        return model, inputs, *model.run_with_cache(inputs)


@pytest.fixture(autouse=True)
def _without_gradient():
    with torch.no_grad():
        yield


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def constant(model: HookedVLM) -> Tensor:
    """What the final norm's bias and the unembedding's add to the logits of `TOKENS`."""
    return (model._language.ln_final.b @ model.W_U + model.b_U)[TOKENS]


@pytest.mark.sampled
@pytest.mark.parametrize("positions", POSITIONS)
def test_directions_read_the_logits_off_whatever_a_norm_was_applied_to(run: Any, positions: Any):
    """The norm's weight counts once, whether the scale is computed anew or the forward's."""
    model, _, logits, cache = run
    directions = model.tokens_to_residual_directions(TOKENS).T
    expected = (logits if positions is None else logits[:, positions])[..., TOKENS]
    expected = expected - constant(model)
    streams = cache.accumulated_resid(apply_ln=True, pos_slice=positions)
    assert_near(streams[-1] @ directions, expected)
    parts = cache.decompose_resid(pos_slice=positions)
    assert_near(cache.logit_attrs(parts, 5, pos_slice=positions).sum(0), expected[..., 0])
    scaled = cache.decompose_resid(apply_ln=True, pos_slice=positions)
    assert_near(scaled.sum(0) @ directions, expected)
    assert_near(cache.apply_ln_to_stack(parts, pos_slice=positions), scaled)


@pytest.mark.parametrize(("layer", "mlp_input"), [(None, False), (1, False), (1, True), (2, True)])
def test_parts_add_up_to_the_stream(run: Any, layer: int | None, mlp_input: bool):
    """Of heads, neurons and layers alike, with whatever else a family adds."""
    model, _, _, cache = run
    if mlp_input and model._language.blocks[0].parallel:
        with pytest.raises(ValueError, match="read the stream that attention reads"):
            cache.accumulated_resid(layer, mlp_input=mlp_input)
        return
    stream = cache.accumulated_resid(layer, mlp_input=mlp_input)[-1]
    assert_near(cache.decompose_resid(layer, mlp_input=mlp_input).sum(0), stream)
    if refusal(model):
        with pytest.raises(ValueError, match=refusal(model)):
            cache.get_full_resid_decomposition(layer, mlp_input=mlp_input)
        return
    for expand in (True, False):
        parts = cache.get_full_resid_decomposition(
            layer, mlp_input=mlp_input, expand_neurons=expand
        )
        assert_near(parts.sum(0), stream)
    directions = model.tokens_to_residual_directions(TOKENS).T
    read, labels = cache.get_full_resid_decomposition(
        layer,
        mlp_input=mlp_input,
        apply_ln=True,
        project_output_onto=directions,
        return_labels=True,
    )
    scaled = cache.apply_ln_to_stack(stream[None], layer, mlp_input=mlp_input)[0]
    assert_near(read.sum(0), scaled @ directions)
    assert len(labels) == len(set(labels)) == len(read)


def refusal(model: HookedVLM) -> str:
    """Why the heads of a family cannot be told apart."""
    if model.cfg.architecture.startswith("Kosmos2"):
        return "a norm over all heads comes between `hook_z` and `W_O`"
    return "attends to the image instead" if model.cfg.architecture.startswith("Mllama") else ""


def test_heads_and_neurons_are_what_they_add(run: Any):
    model, _, _, cache = run
    if refusal(model):
        with pytest.raises(ValueError, match=refusal(model)):
            cache.stack_head_results()
    else:
        blocks, heads = model._language.blocks, model.cfg.n_heads
        rows = cache.stack_head_results()[-heads:].sum(0)
        if not hasattr(blocks[-1], "ln1_post"):
            rows = rows + blocks[-1].attn.b_O
        assert_near(rows, cache["attn_out", -1])
    parts = cache.decompose_resid(mode="mlp", incl_embeds=False, pos_slice=-1)
    for layer, part in enumerate(parts):
        neurons = cache.get_neuron_results(layer, pos_slice=-1).sum(-2)
        assert_near(neurons + model._language.blocks[layer].mlp.b_out, part)


def test_the_logit_lens_of_transformer_lens_ends_at_the_logits(run: Any):
    model, inputs, logits, cache = run
    if model.cfg.is_encoder_decoder:
        with pytest.raises(ValueError, match="is an encoder with a decoder"):
            cache.logit_lens()
        with pytest.raises(ValueError, match="ln_final"):
            logit_lens(model, cache=cache)
        return
    last = cache.logit_lens(positions=None).values[-1]
    torch.testing.assert_close(last, logits, rtol=1e-5, atol=1e-5)
    stream = cache["resid_post", -1]
    read = model.unembed(model.ln_final(stream))
    torch.testing.assert_close(read, logits, rtol=1e-5, atol=1e-5)
    anew = logit_lens(model, inputs, targets=TOKENS[:1], incl_mid=not model.blocks[0].parallel)
    assert_near(anew.values[-1, :, 0], logits[:, -1, TOKENS[0]])


def test_the_logit_lens_caps_logits_as_the_model_does():
    """PaliGemma 2 has Gemma 2 as text model, whose logits are capped."""
    sizes = {**TEXT, **token_ids(), "num_key_value_heads": 1, "head_dim": 8}
    text = Gemma2Config(**sizes, vocab_size=22, final_logit_softcapping=2.0)
    hf, processor = build("paligemma", text_config=text)
    model = HookedVLM(hf, processor=processor)
    logits, cache = model.run_with_cache(example("paligemma", hf, processor, "image"))
    last = cache.logit_lens(positions=None).values[-1]
    torch.testing.assert_close(last, logits, rtol=1e-5, atol=1e-5)
    uncapped = model.unembed(model.ln_final(cache["resid_post", -1]))
    torch.testing.assert_close(2 * (uncapped / 2).tanh(), logits, rtol=1e-5, atol=1e-5)
    assert (uncapped - logits).abs().max() > 0.05


def test_a_cache_of_one_kind_of_part_has_the_parts_of_that_kind(run: Any):
    model, inputs, _, cache = run
    prefix = "decoder." if model.cfg.is_encoder_decoder else ""
    _, some = model.run_with_cache(inputs, names_filter=f"{prefix}blocks.0.hook_mlp_out")
    found = some.decompose_resid(1, mode="mlp", incl_embeds=False)
    assert torch.equal(found[0], cache["mlp_out", 0])


def test_a_cache_without_a_batch_axis_reads_the_same(run: Any):
    model, _, logits, cache = run
    prefix = "decoder." if model.cfg.is_encoder_decoder else ""
    own = tuple(prefix + name for name in ("blocks.", "ln_final.", "hook_"))
    first = {name: value[0] for name, value in cache.items() if name.startswith(own)}
    plain = ActivationCache(first, model, has_batch_dim=False)
    directions = model.tokens_to_residual_directions(TOKENS).T
    read = plain.accumulated_resid(apply_ln=True)[-1] @ directions
    assert_near(read + constant(model), logits[0][:, TOKENS])
    parts = plain.decompose_resid()
    assert_near(plain.logit_attrs(parts, 5, has_batch_dim=False).sum(0), read[:, 0])

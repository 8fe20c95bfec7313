"""Mean activations, against a loop over samples, one at a time, with plain PyTorch hooks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import assert_no_hooks
from tests.families import build
from tests.families.base import picture
from tests.geometry.families import placeholder
from tests.masking.reference import LLAVA, SAMPLES, Slow, first_linears, linear_of
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM, NeuronSet
from vlm_lens.analyses import can
from vlm_lens.data import Sample
from vlm_lens.hooks import HookNameError
from vlm_lens.masking import MaskedRuns, mean_activations
from vlm_lens.neurons.sites import sites
from vlm_lens.passes.answers import media_tokens
from vlm_lens.passes.batch import make_batches

N_TOKENS = 5


def slow_means(
    model: HookedVLM,
    samples: list[Sample],
    names: list[str],
    target: str,
    table: Mapping[str, str] = LLAVA,
) -> dict[str, Tensor]:
    """The mean of all outputs of each linear layer, one unpadded sample after the other."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    slow = Slow(model, table=table, max_new_tokens=N_TOKENS, never=media_tokens(model))
    inputs = [whole_input(slow, sample, target) for sample in samples]
    handles = []
    for name in names:

        def keep(_module, _args, output, name=name):
            seen[name] += output.detach().reshape(-1, output.shape[-1]).double()

        handles.append(linear_of(model.hf_model, name, table).register_forward_hook(keep))
    with torch.no_grad():
        for arguments in inputs:
            model.hf_model(**arguments)
    for handle in handles:
        handle.remove()
    return {name: torch.stack(rows).mean(0).float() for name, rows in seen.items()}


def whole_input(slow: Slow, sample: Sample, target: str) -> dict[str, Any]:
    """A sample's prompt and answer."""
    images = sample.images or None
    if target == "answer":
        return dict(slow.model.prepare(text=sample.text, images=images, answer=sample.answer))
    prompt = slow.model.prepare(text=sample.text, images=images)
    answer = torch.tensor([slow.answer(sample)])
    if slow.model.cfg.is_encoder_decoder:
        start = prompt["decoder_input_ids"]
        return {**prompt, "decoder_input_ids": torch.cat([start, answer], dim=1)}
    return dict(prompt.extend(torch.cat([prompt.input_ids, answer], dim=1)))


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, mean in found.items():
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean, expected[name], rtol=1e-5, atol=1e-6)


@cache
def tiny() -> Tiny:
    """A LLaVA some of whose answers end early: "green" ends one too."""
    built = build_tiny("clip-llama")
    built.hf.generation_config.eos_token_id = [2, 13]
    return built


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("target", ["own", "answer"])
def test_means_of_every_matrix_with_and_without_images_in_a_batch(target, batch_size):
    """Neither the padding of prompts nor what is behind an answer's end counts."""
    model = tiny().model
    names = [name for name in sites(model) if not name.startswith("vision_encoder.blocks.2")]
    made = make_batches(
        model, SAMPLES, target=target, batch_size=batch_size, max_new_tokens=N_TOKENS
    )
    assert len({len(answer.split()) for batch in made for answer in batch.answers}) > 1
    found = mean_activations(model, made, names)
    assert_same(found, slow_means(model, SAMPLES, names, target))
    assert_no_hooks(model)


FAMILIES = ["llava_next", "idefics3", "internvl", "qwen2_vl", "qwen2_5_vl", "instructblip-t5"]


@pytest.mark.parametrize("family", FAMILIES)
def test_means_of_families_with_tiles_patches_and_two_stacks(family: str):
    hf, processor = build(family)
    model, here = HookedVLM(hf, processor=processor), placeholder(family)
    samples = [
        Sample([picture(0, size=(82, 50))], f"{here} what color ?", answer="red"),
        Sample([picture(1, size=(34, 66))], f"{here} is the square red ?", answer="a blue square"),
    ]
    if family != "instructblip-t5":  # whose queries need an image
        samples.insert(1, Sample([], "circle", answer="one two"))
    stacks = ["decoder.", "encoder."] if family.endswith("t5") else [""]
    names = [f"{stack}blocks.1.mlp.hook_pre" for stack in stacks]
    names.append("vision_encoder.blocks.1.mlp.hook_pre")
    made = make_batches(model, samples, target="answer", max_new_tokens=2)
    found = mean_activations(model, made, names)
    assert_same(found, slow_means(model, samples, names, "answer", first_linears(family)))


def test_means_of_heads_are_flat():
    """As a mask wants them; the mean of what a layer's heads give, one head after the other."""
    name = "blocks.1.attn.hook_v"
    made = make_batches(tiny().model, SAMPLES, target="answer", max_new_tokens=2)
    found = mean_activations(tiny().model, made, [name])
    table = {r"blocks\.(\d+)\.attn\.hook_v": r"model.language_model.layers.\1.self_attn.v_proj"}
    assert_same(found, slow_means(tiny().model, SAMPLES, [name], "answer", table))
    ranking = NeuronSet.from_indices({name: [3, 17]}, sizes={name: 32})
    [losses] = MaskedRuns(tiny().model, made, ranking, fill=found).losses([2])
    assert losses.nll.isfinite().all()


def test_a_mean_is_that_of_half_precision_activations_in_float32():
    built = build_tiny("clip-llama", dtype=torch.bfloat16)
    names = ["projector.hook_out", "blocks.2.hook_mlp_out"]
    made = make_batches(built.model, SAMPLES, target="answer", max_new_tokens=2, batch_size=1)
    found = mean_activations(built.model, made, names)
    assert_same(found, slow_means(built.model, SAMPLES, names, "answer"))


def test_names_may_repeat_and_may_be_none():
    made = make_batches(tiny().model, SAMPLES[:2], max_new_tokens=2)
    once = mean_activations(tiny().model, made, ["projector.hook_out"])
    assert_same(mean_activations(tiny().model, made, ["projector.hook_out"] * 2), once)
    assert mean_activations(tiny().model, made, []) == {}


def test_what_no_sample_reaches_has_no_mean():
    made = make_batches(tiny().model, [SAMPLES[1]], max_new_tokens=2)
    names = ["blocks.0.hook_mlp_out", "projector.hook_out", "projector.mlp.hook_pre"]
    with pytest.raises(ValueError, match=r"no sample reaches 'projector.hook_out' \(in all, 2 "):
        mean_activations(tiny().model, made, names)
    assert_no_hooks(tiny().model)
    assert list(mean_activations(tiny().model, made, names[:1])) == names[:1]


def test_a_hook_point_without_neurons_is_refused():
    made = make_batches(tiny().model, [SAMPLES[1]], max_new_tokens=2)
    with pytest.raises(ValueError, match="with neurons, got 'blocks.0.attn.hook_pattern'"):
        mean_activations(tiny().model, made, ["blocks.0.attn.hook_pattern"])
    with pytest.raises(HookNameError, match="nope"):
        mean_activations(tiny().model, made, ["nope"])


def test_a_mean_that_is_not_finite_is_refused():
    built = build_tiny("clip-llama")
    built.hf.model.language_model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    made = make_batches(built.model, [SAMPLES[1]], target="answer", max_new_tokens=2)
    names = ["blocks.0.hook_mlp_out", "blocks.1.mlp.hook_pre_linear"]
    with pytest.raises(ValueError, match="'blocks.1.mlp.hook_pre_linear' .* have no finite mean"):
        mean_activations(built.model, made, names)
    assert_no_hooks(built.model)


# Filling ------------------------------------------------------------------------------------------


def test_the_search_fills_with_means_as_ablation_by_hand_does():
    """`NeuronSet.ablate("mean")` with a cache of one unpadded prompt, and the loss by hand."""
    model, sample = tiny().model, SAMPLES[0]
    scores = can.score(model, [sample], max_new_tokens=N_TOKENS)
    found = can.find_critical(
        model, [sample], scores, fill="mean", max_k=40, also_at=[7], max_new_tokens=N_TOKENS
    )
    assert found.parameters["fill"] == "mean"
    whole = whole_input(Slow(model, max_new_tokens=N_TOKENS), sample, "own")
    n_answer = (
        whole["input_ids"].shape[1] - model.prepare(text=sample.text, images=sample.images).shape[1]
    )
    for measured in found.curve:
        neurons = found.ranking[: measured.k]
        _, cache = model.run_with_cache(whole, names_filter=list(found.ranking.names))
        with torch.no_grad():
            logits = model.run_with_hooks(whole, fwd_hooks=neurons.ablate("mean", reference=cache))
        log_p = logits[0].double().log_softmax(-1)[:-1].gather(-1, whole["input_ids"].T[1:])
        perplexity = float((-log_p[-n_answer:].mean()).exp())
        assert measured.metrics["perplexity"] == pytest.approx(perplexity, rel=1e-4), measured.k
    zero = can.find_critical(
        model, [sample], scores, max_k=40, also_at=[7], max_new_tokens=N_TOKENS
    )
    at_7 = [next(m for m in f.curve if m.k == 7).metrics["perplexity"] for f in (found, zero)]
    assert at_7[0] != pytest.approx(at_7[1], rel=1e-3)

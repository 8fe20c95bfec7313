"""Whose each position is: a batch's positions of a sample hold what the sample gives alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.families import KINDS, TEXT_MODELS, build
from tests.families.base import picture
from tests.geometry.families import built as built_variant
from tests.geometry.families import placeholder
from vlm_lens import HookedVLM
from vlm_lens.data import Sample
from vlm_lens.hooks.heads import HEAD_SITES, PATTERN_SITES
from vlm_lens.inputs.owners import NO_SAMPLE
from vlm_lens.passes.batch import Batch, make_batches

TEXTS = ["what color is the circle ?", "is the square red ?", "left circle", "two ?"]
ANSWERS = ["red circle", "blue", "two red one", "left"]
VARIANTS = ["gemma3-crops", "idefics3-odd", "onevision-shrunk", "onevision-leftover"]


@cache
def model_of(name: str) -> HookedVLM:
    if name in VARIANTS:
        hf, processor = built_variant(name)
        return HookedVLM(hf, processor=processor)
    hf, processor = build(name)
    return HookedVLM(hf, processor=processor)


def samples_of(name: str) -> list[Sample]:
    """Text alone, one and two images of several sizes, as far as the family can."""
    base = name.partition("-crops")[0].partition("-odd")[0]
    base = "llava_onevision" if name.startswith("onevision") else base
    several = "text" in KINDS[base] or base == "paligemma"
    counts = [1, 0, 2, 1] if several else [1, 1, 1, 1]
    if base in TEXT_MODELS:
        counts = [0, 0, 0, 0]
    if base == "mllama":  # a text beside images is not what it is alone, in Hugging Face too
        counts[1] = 1
    sizes = iter([(82, 50), (34, 66), (50, 34), (90, 40), (40, 40)])
    samples = []
    for count, text, answer in zip(counts, TEXTS, ANSWERS, strict=True):
        images = [picture(i, size=next(sizes)) for i in range(count)]
        prompt = f"{placeholder(base) * count if count else ''} {text}"
        samples.append(Sample(images=images, text=prompt, answer=answer))
    return samples


def batch_of(name: str, samples: list[Sample]) -> Batch:
    if name != "qwen2_audio":
        [batch] = make_batches(model_of(name), samples, target="answer", max_new_tokens=2)
        return batch
    return sounds([sample.text for sample in samples])


def sounds(texts: list[str]) -> Batch:
    """What `make_batches` would give if samples could hold sounds."""
    model = model_of("qwen2_audio")
    heard: Any = []
    for text in texts:
        n = TEXTS.index(text.strip())
        noise = np.random.default_rng(n).standard_normal(6000 + 2500 * n).astype(np.float32)
        heard.append([[noise], [], [noise, noise[:5000]], [noise]][n])
    here = placeholder("qwen2_audio")
    prompts = [f"{here * len(s)} {text}" for s, text in zip(heard, texts, strict=True)]
    answers = [ANSWERS[TEXTS.index(text.strip())] for text in texts]
    inputs = model.prepare(text=prompts, audio=heard if any(heard) else None, answer=answers)
    scored = inputs.positions_mask("answer")[:, 1:]
    return Batch(
        samples=[Sample(images=[], text=text) for text in texts],
        numbers=list(range(len(texts))),
        prompts=inputs,
        maps=inputs.token_map,
        arguments=dict(inputs),
        targets=inputs.input_ids[:, 1:],
        scored=scored,
        real=inputs.attention_mask.bool(),
        answers=answers,
    )


def activations(name: str, batch: Batch) -> dict[str, Tensor]:
    """All that have a row and a position axis, and one of neurons."""
    names = [n for n in model_of(name).hook_dict if not n.endswith(HEAD_SITES + PATTERN_SITES)]
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: Any) -> None:
        kept[hook.name] = tensor.detach().clone()

    with torch.no_grad():
        model_of(name).run_with_hooks(batch.arguments, fwd_hooks=[(names, keep)])
    return kept


# Whose positions are is tested in every family with caches, in tests/test_cache_batches.py;
# these have something that a cache need not work out, or that a batch with answers adds.
OWN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "mllama", "instructblip-t5", "qwen2_audio"]


@pytest.mark.sampled
@pytest.mark.filterwarnings("ignore::vlm_lens.hooked_root.HookNeverFiredWarning")
@pytest.mark.parametrize("name", OWN)
def test_a_samples_positions_are_what_it_gives_alone(name: str) -> None:
    samples = samples_of(name)
    if name == "qwen2_audio":
        samples = [Sample(images=[], text=text) for text in TEXTS]
    batch = batch_of(name, samples)
    together = activations(name, batch)
    ownership, found = batch.owners(), dict.fromkeys(together, 0)
    for i, sample in enumerate(samples):
        alone = batch_of(name, [sample])
        own = alone.owners()
        for hook, values in activations(name, alone).items():
            mine = values[own.of(hook, *values.shape[:2]) == 0]
            of_batch = together[hook]
            shown = of_batch[ownership.of(hook, *of_batch.shape[:2]) == i]
            rest = values[own.of(hook, *values.shape[:2]) == NO_SAMPLE]
            if name != "qwen2_audio":  # in which sounds are filled up with silence
                assert not rest.any(), hook  # filled up with zeros to the size of the largest image
            torch.testing.assert_close(shown, mine, rtol=1e-3, atol=1e-3, msg=hook)
            found[hook] += len(mine)
    for hook, values in together.items():
        owners = ownership.of(hook, *values.shape[:2])
        assert (owners != NO_SAMPLE).sum() == found[hook] > 0, hook


def test_a_sound_has_the_positions_of_its_spans() -> None:
    batch = batch_of("qwen2_audio", [Sample(images=[], text=text) for text in TEXTS])
    expected = [sum(len(s.spans) for s in m.audios) for m in batch.prompts.token_map]
    owners = batch.owners().of("projector.hook_out", 4, 25)
    assert torch.bincount(owners[owners != NO_SAMPLE], minlength=4).tolist() == expected


def test_without_the_first_token() -> None:
    batch = batch_of("llava_next", samples_of("llava_next"))
    with_first, without = batch.owners(), batch.owners(first_token=False)
    shape = batch.real.shape
    missing = with_first.of("hook_embed", *shape) != without.of("hook_embed", *shape)
    assert missing.sum(1).tolist() == [1] * 4
    tokens = batch.arguments["input_ids"][missing]
    assert tokens.tolist() == [model_of("llava_next").tokenizer.bos_token_id] * 4
    encoder = [o.of("projector.hook_out", 18, 16) for o in (with_first, without)]
    assert torch.equal(*encoder)


def test_without_the_first_token_of_an_encoder_and_of_its_decoder() -> None:
    batch = batch_of("blip2-t5", samples_of("blip2-t5"))
    ownership = batch.owners(first_token=False)
    decoder = ownership.of("decoder.blocks.0.hook_mlp_out", *batch.real.shape)
    assert torch.equal(
        decoder != NO_SAMPLE,
        batch.scored.new_zeros(4, 1).logical_or(
            torch.cat([torch.zeros(4, 1, dtype=torch.bool), batch.scored], 1)
        ),
    )
    mask = batch.arguments["attention_mask"]
    encoder = ownership.of("encoder.blocks.0.hook_mlp_out", *mask.shape)
    assert ((encoder != NO_SAMPLE).sum(1) == mask.sum(1) - 1).all()


def test_images_that_are_not_there_are_nobodys() -> None:
    """Mllama has a tile for each sample, even for one without an image."""
    name = "mllama"
    samples = samples_of(name)
    samples[1] = Sample(images=[], text=TEXTS[1], answer="blue")
    batch = batch_of(name, samples)
    n_views = [sum(len(y.views) for y in m.layouts) for m in batch.prompts.token_map]
    n_rows = int(batch.arguments["aspect_ratio_mask"].sum())
    owners = batch.owners().of("vision_encoder.blocks.0.mlp.hook_pre", n_rows, 17)
    assert (owners == owners[:, :1]).all()
    counts = [int((owners[:, 0] == i).sum()) for i in range(4)]
    assert counts == n_views
    assert counts[1] == 0
    assert int((owners[:, 0] == NO_SAMPLE).sum()) == n_rows - sum(n_views) > 0


def test_a_shape_that_does_not_fit_is_refused() -> None:
    batch = batch_of("qwen2_vl", samples_of("qwen2_vl"))
    ownership = batch.owners()
    for hook in ("hook_embed", "vision_encoder.blocks.0.mlp.hook_pre", "projector.hook_out"):
        with pytest.raises(ValueError, match=f"at '{hook}' from this batch of 4 samples, got 7x5"):
            ownership.of(hook, 7, 5)

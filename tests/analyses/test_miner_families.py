"""MINER scores every registered family, sounds included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import assert_no_hooks
from tests.families import FAMILIES, KINDS, build
from tests.tiny import picture
from vlm_lens import HookedVLM, Sample
from vlm_lens.analyses import miner


def sounds(model: HookedVLM, processor):
    rate = processor.feature_extractor.sampling_rate
    noise = np.random.default_rng(0).standard_normal(rate).astype(np.float32)
    return model.prepare(
        audio=[noise[: rate // 2], None, noise[: rate * 4 // 5]],
        text=["what color ?", "is the square red ?", "circle"],
    )


def prompts(name: str, model: HookedVLM, processor):
    """Batches of different length, one prompt of which has nothing but text."""
    if name == "qwen2_audio":
        return sounds(model, processor)
    with_images = [
        Sample(images=[picture(i, size=(50, 34))], text=text)
        for i, text in enumerate(["what color ?", "is the left circle red ?"])
    ]
    if "text" not in KINDS[name]:  # the forward demands pictures
        return with_images
    return [*with_images, Sample(images=[], text="is the square red ?")]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_scored(name: str):
    hf, processor = build(name)
    model = HookedVLM(hf, processor=processor)
    given = prompts(name, model, processor)
    scores = miner.score(model, given)
    assert_no_hooks(model)
    assert {"text", "audio" if name == "qwen2_audio" else "image"} <= set(scores.occurring)
    n_layers = model.cfg.n_layers
    assert scores.importance.shape == (5, 5, n_layers, model.cfg.d_mlp)
    assert scores.importance.isfinite().all()
    assert scores.importance.amin() == 0
    assert scores.importance.amax() <= 1
    every = scores.importance[:, [scores.modalities.index(m) for m in scores.occurring]]
    assert every.flatten(2).amax(-1).gt(0).all()  # each metric, for each modality
    found = miner.select(scores, ratio=0.1)
    assert {len(neurons) for neurons in found.values()} == {
        int(0.1 * n_layers * model.cfg.d_mlp) // len(scores.occurring)
    }


def test_sounds_are_a_modality_of_their_own():
    hf, processor = build("qwen2_audio")
    model = HookedVLM(hf, processor=processor)
    batch = sounds(model, processor)
    scores = miner.score(model, {"sounds": batch})
    assert list(scores.n_with["sounds"].values()) == [3, 3, 0, 0, 2]
    rate = processor.feature_extractor.sampling_rate
    noise = np.random.default_rng(0).standard_normal(rate).astype(np.float32)
    apart = [
        model.prepare(audio=noise[: rate // 2], text="what color ?"),
        model.prepare(text="is the square red ?"),
        model.prepare(audio=noise[: rate * 4 // 5], text="circle"),
    ]
    one_by_one = miner.score(model, {"sounds": apart})
    torch.testing.assert_close(scores.importance, one_by_one.importance, rtol=0, atol=1e-5)


def test_layers_without_self_attention_take_all_tokens_alike():
    hf, processor = build("mllama")
    model = HookedVLM(hf, processor=processor)
    scores = miner.score(model, [Sample(images=[picture(0)], text="is the square red ?")])
    [cross] = [i for i, b in enumerate(model.blocks) if hasattr(b, "cross_attn")]
    mean, attn_k = (
        scores.of(metric=name, modality="text").stacked() for name in ("mean", "attn_k")
    )
    torch.testing.assert_close(mean[cross], attn_k[cross], rtol=0, atol=1e-5)
    assert not torch.allclose(mean[cross + 1], attn_k[cross + 1])
    words = miner.score(model, [Sample(images=[], text="is the square red ?")])
    assert not words.importance[:, :, cross].any()  # it does not run without an image
    assert words.notes[-1].startswith(
        f"never ran, so that nothing in them is important: blocks.{cross}"
    )

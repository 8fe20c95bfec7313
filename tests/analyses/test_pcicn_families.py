"""PCICN's scores in every family, against whole forwards on one noisy copy after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.analyses.entries import ASKED, MODULES, listed, positions
from tests.conftest import assert_no_hooks
from tests.families import FAMILIES, build
from tests.tiny import Tiny, picture
from vlm_lens import HookedVLM, Sample
from vlm_lens.analyses.pcicn import default_sites, score
from vlm_lens.hooked_root import HookNeverFiredWarning


def family_prompt(name: str, model: HookedVLM, hf, processor):
    """A picture and a question; a sound where the family has those instead."""
    if name == "qwen2_audio":
        rate = processor.feature_extractor.sampling_rate
        sound = np.random.default_rng(0).standard_normal(rate // 2).astype(np.float32)
        return model.prepare(audio=sound, text="what color ?")
    return Sample(images=[picture(0, size=(50, 34))], text="what color is the circle ?")


def one_by_one(model: HookedVLM, sample, *, n_noisy: int, seed: int) -> dict[str, Tensor]:
    """Mean differences at the default sites, from caches of whole forwards on single copies."""
    if isinstance(sample, Sample):
        sample = model.prepare(text=sample.text, images=sample.images)
    names = default_sites(model)
    generator = torch.Generator().manual_seed(seed)

    def add_noise(tensor, hook):
        return tensor + 5.0 * torch.randn(tensor.shape[1:], generator=generator)

    with torch.no_grad():
        _, clean = model.run_with_cache(sample, names_filter=names)
        moved = {name: torch.zeros_like(value) for name, value in clean.items()}
        for _ in range(n_noisy):
            with model.hooks([("hook_embed", add_noise)]):
                _, noisy = model.run_with_cache(sample, names_filter=names)
            for name in moved:
                moved[name] += (clean[name] - noisy[name]).abs() / n_noisy
        for name in moved:
            if name.endswith("ln2.hook_normalized"):
                moved[name] *= model.get_submodule(name.removesuffix(".hook_normalized")).w.abs()
    return {name: value[0].reshape(value.shape[1], -1) for name, value in moved.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_with_a_decoder_is_scored(name: str):
    # Kosmos-2's mask does not fit into float64.
    hf, processor = build(name, dtype=torch.float32 if name == "kosmos2" else torch.float64)
    model = HookedVLM(hf, processor=processor)
    if model.cfg.is_encoder_decoder:
        with pytest.raises(ValueError, match="is an encoder with a decoder"):
            score(model, "what color ?")
        return
    sample = family_prompt(name, model, hf, processor)
    found = score(model, sample, n_noisy=3, batch_size=2, seed=5, max_entries=10**6)
    assert_no_hooks(model)
    expected = one_by_one(model, sample, n_noisy=3, seed=5)
    assert {key: value.shape[1] for key, value in expected.items()} == found.sizes
    assert list(found.sizes) == default_sites(model)
    dense = {key: torch.zeros_like(value) for key, value in expected.items()}
    for site, position, index, value in listed(found):
        dense[site][position, index] = value
    for site, value in expected.items():
        torch.testing.assert_close(dense[site], value, rtol=1e-4, atol=1e-5)
    assert found.score.isfinite().all()
    assert positions(found) == set(range(len(found.tokens)))
    if name != "mllama":
        media = score(model, sample, n_noisy=2, noise_on="image", sites="blocks.0.attn.hook_v")
        assert 0 < len(positions(media)) < len(found.tokens)
    else:
        with pytest.raises(ValueError, match="cross-attention"):
            score(model, sample, noise_on="image")


def test_the_default_sites_are_those_that_the_authors_hook(llava: Tiny):
    expected = {f"blocks.{layer}.{site}" for layer in range(3) for site in MODULES.values()}
    assert set(default_sites(llava.model)) == expected
    gemma = HookedVLM(build("gemma3")[0])
    sites = {name.split(".", 2)[2] for name in default_sites(gemma)}
    assert sites == set(MODULES.values()) - {"ln2.hook_normalized"}
    opt = HookedVLM(build("blip2-opt")[0])
    sites = {name.split(".", 2)[2] for name in default_sites(opt)}
    gated = {"mlp.hook_act", "mlp.hook_pre_linear"}
    assert sites == set(MODULES.values()) - gated | {"mlp.hook_post"}


@pytest.mark.full
def test_cross_attention_that_does_not_run_is_no_surprise():
    hf, processor = build("mllama")
    model = HookedVLM(hf, processor=processor)
    found = score(model, "what color ?", n_noisy=2)
    assert {name.split(".")[1] for name in found.sizes} == {"0", "2"}
    with pytest.warns(HookNeverFiredWarning):
        score(model, "what color ?", n_noisy=2, sites="blocks.*.hook_mlp_out")


def test_the_vision_encoder_runs_once(llava: Tiny):
    seen = []
    hook = ("vision_encoder.blocks.0.mlp.hook_post", lambda t, hook: seen.append(len(t)))
    with llava.model.hooks([hook]):
        score(llava.model, ASKED, n_noisy=5, batch_size=2)
    assert seen == [1]

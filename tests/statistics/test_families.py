"""Every family: what is where is known at each of its sites, and no batch changes anything."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.analyses.test_can_score import samples_of
from tests.families import FAMILIES, build
from vlm_lens import HookedVLM
from vlm_lens.data import Sample
from vlm_lens.neurons.sites import sites
from vlm_lens.statistics import collect


@pytest.mark.sampled
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "qwen2_audio"])
def test_batches_change_nothing_at_any_site(name: str) -> None:
    hf, processor = build(name)
    model, samples = HookedVLM(hf, processor=processor), samples_of(name)
    options = {"answers": "own", "max_new_tokens": 4, "top_k": 2, "token_types": ["image", "text"]}
    together = collect(model, samples, batch_size=5, **options)
    alone = collect(model, samples, batch_size=1, **options)
    assert list(together.mean) == sites(model, "act")
    assert not together.left_out
    for site, by_type in alone.mean.items():
        assert list(together.mean[site]) == list(by_type)
        for token_type, mean in by_type.items():
            assert together.count[site][token_type] == alone.count[site][token_type]
            scale = float(alone.max[site][token_type].abs().max())
            torch.testing.assert_close(
                together.mean[site][token_type], mean, rtol=1e-5, atol=1e-5 * scale
            )


def test_a_model_of_sounds_reads_texts() -> None:
    hf, processor = build("qwen2_audio")
    model, texts = HookedVLM(hf, processor=processor), ["what is left ?", "two"]
    found = collect(model, [Sample([], text) for text in texts], component="language_model")
    kinds = Counter(kind for one in model.prepare(text=texts).token_map for kind in one.modality)
    assert kinds.pop("padding")
    assert next(iter(found.count.values())) == kinds

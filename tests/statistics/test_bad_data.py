"""Samples that cannot be used are left out with a reason, or refused; never a silent NaN."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.statistics.slow import built, samples_of
from tests.tiny import build_tiny, picture
from vlm_lens import HookedVLM
from vlm_lens.data import Sample
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.passes import SamplesLeftOutWarning
from vlm_lens.statistics import collect

SITE = "blocks.1.mlp.hook_act"


def cut_off(folder: Path) -> Image.Image:
    """A picture whose file ends too early, as Pillow opens it without a word."""
    path = folder / "cut.png"
    picture(0, size=(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    return Image.open(path)


def test_bad_samples_are_left_out_with_their_reason(tmp_path: Path) -> None:
    good = samples_of("llava")
    bad = [
        replace(good[0], images=[cut_off(tmp_path)]),
        replace(good[1], answer=""),
        replace(good[2], answer=None),
        replace(good[3], text=" ".join(["left"] * 200)),
        replace(good[4], images=[]),
    ]
    samples = [good[0], bad[0], good[1], bad[1], bad[2], good[2], bad[3], bad[4], good[3], good[4]]
    with pytest.warns(SamplesLeftOutWarning, match="5 of 10 samples do not count; sample 1: "):
        found = collect(built("llava"), samples, answers="given", batch_size=4, top_k=5)
    assert list(found.left_out) == [1, 3, 4, 6, 7]
    reasons = list(found.left_out.values())
    assert "OSError" in reasons[0] or "ValueError" in reasons[0]
    assert "needs an answer" in reasons[1]
    assert "needs an answer" in reasons[2]
    assert "context holds" in reasons[3]
    assert found.n_samples == 5
    assert "5 samples; 5 left out" in repr(found)
    assert set(found.top[SITE].samples.flatten().tolist()) == {0, 2, 5, 8, 9}
    expected = collect(built("llava"), good, answers="given", top_k=5)
    for token_type, mean in expected.mean[SITE].items():
        torch.testing.assert_close(found.mean[SITE][token_type], mean)


def test_a_sample_that_is_not_finite_does_not_count() -> None:
    tiny = build_tiny("clip-llama", dtype=torch.float64)
    token = tiny.model.tokenizer.convert_tokens_to_ids("two")
    tiny.hf.get_input_embeddings().weight.data[token, 3] = torch.inf
    good = [Sample([], "left"), Sample([picture(0)], "<image> red ?"), Sample([], "is the circle")]
    samples = [good[0], Sample([], "is two ?"), *good[1:]]
    with pytest.warns(SamplesLeftOutWarning, match="blocks.0.mlp.hook_act is infinite or NaN"):
        found = collect(tiny.model, samples, sites="blocks.*.mlp.hook_act", batch_size=4)
    assert list(found.left_out) == [1]
    expected = collect(tiny.model, good, sites="blocks.*.mlp.hook_act")
    for name, by_type in expected.mean.items():
        for token_type, mean in by_type.items():
            torch.testing.assert_close(found.mean[name][token_type], mean)


def test_if_none_of_the_first_can_be_used_nothing_goes_on() -> None:
    samples = [replace(sample, answer=None) for sample in samples_of("llava")]
    for batch_size in (1, 3):
        with pytest.raises(ValueError, match="none of the first . samples can be used; sample 0"):
            collect(built("llava"), samples, answers="given", batch_size=batch_size)


def test_no_samples() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        collect(built("llava"), [])


def test_hook_points_that_no_sample_reaches() -> None:
    samples = [Sample([], "what color ?")]
    with pytest.warns(HookNeverFiredWarning, match="4 hook points have nothing to show"):
        found = collect(built("llava"), samples)
    assert list(found.mean) == [f"blocks.{i}.mlp.hook_act" for i in range(3)]
    assert list(found.mean[SITE]) == ["text", "special"]
    with pytest.raises(ValueError, match="need samples with images"):
        collect(built("llava"), samples, component="vision_encoder")
    with pytest.raises(ValueError, match=r"no position of the types \['audio'\]"):
        collect(built("llava"), samples, sites=SITE, token_types=["audio"])


def test_a_type_that_never_occurs_is_missing_and_not_nan() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = collect(built("llava"), samples_of("llava"), sites=SITE, top_over="audio")
    assert "audio" not in found.mean[SITE]
    assert len(found.top[SITE].values) == 0
    assert not found.to_dataframe().isna().any().any()


def test_mixed_batches_weigh_every_token_alike() -> None:
    def run(model: HookedVLM, **options: Any) -> Any:
        return collect(model, samples_of("llava"), top_k=2, **options)

    alone = run(built("llava"), batch_size=1)
    for batch_size in (2, 3, 5):
        found = run(built("llava"), batch_size=batch_size)
        for name, by_type in alone.mean.items():
            for token_type, mean in by_type.items():
                assert found.count[name][token_type] == alone.count[name][token_type]
                torch.testing.assert_close(found.mean[name][token_type], mean, rtol=1e-6, atol=1e-7)
            assert torch.equal(found.top[name].samples, alone.top[name].samples)
            assert torch.equal(found.top[name].positions, alone.top[name].positions)

"""Every statistic against the slow way, on several families and whatever the batches are."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch

from tests.conftest import assert_no_hooks
from tests.statistics.slow import (
    MODULES,
    N_NEW,
    Record,
    built,
    chosen,
    records,
    samples_of,
)
from vlm_lens.neurons.sites import sites
from vlm_lens.statistics import NeuronStatistics, collect
from vlm_lens.statistics.reduce import moments_of

FAMILIES = list(MODULES)


def same(found: Any, expected: torch.Tensor, *, rtol: float = 1e-5) -> None:
    """To a part of each value, or of the largest one where a value is tiny."""
    atol = rtol * float(expected.double().abs().max()) + 1e-14
    torch.testing.assert_close(
        torch.as_tensor(found).double(), expected.double(), rtol=rtol, atol=atol
    )


def collected(name: str, **options: Any) -> NeuronStatistics:
    options = {"sites": list(MODULES[name]), "max_new_tokens": N_NEW, **options}
    return collect(built(name), samples_of(name), **options)


def check_against(
    found: NeuronStatistics,
    expected: dict[str, list[Record | None]],
    *,
    top_over: str,
    active_above: float = 0.0,
    rtol: float = 1e-5,
    ordered: bool = True,
) -> None:
    """All statistics of all sites and types, and which types there are.

    ``ordered=False``: patches are in another order inside Hugging Face's model (Qwen's windows).
    """
    assert set(found.mean) == set(expected)
    for site, by_sample in expected.items():
        there = [record for record in by_sample if record is not None]
        for token_type in found.token_types:
            values = torch.cat([record.values[chosen(record, token_type)] for record in there])
            if not len(values):
                assert token_type not in found.mean[site]
                continue
            assert found.count[site][token_type] == len(values)
            same(found.sum[site][token_type], values.sum(0), rtol=rtol)
            same(found.sum_of_squares[site][token_type], (values**2).sum(0), rtol=rtol)
            same(found.mean[site][token_type], values.mean(0), rtol=rtol)
            same(found.variance[site][token_type], values.var(0, correction=0), rtol=rtol)
            same(found.std[site][token_type], values.std(0, correction=0), rtol=rtol)
            same(found.max[site][token_type], values.amax(0), rtol=rtol)
            same(found.min[site][token_type], values.amin(0), rtol=rtol)
            rate = (values > active_above).double().mean(0)
            torch.testing.assert_close(found.active_rate[site][token_type], rate)
        check_top(found, site, by_sample, top_over, rtol=rtol, ordered=ordered)


def check_top(
    found: NeuronStatistics,
    site: str,
    by_sample: list[Record | None],
    top_over: str,
    *,
    rtol: float,
    ordered: bool,
) -> None:
    peaks = {
        number: (record, chosen(record, top_over))
        for number, record in enumerate(by_sample)
        if record is not None and chosen(record, top_over)
    }
    top, k = found.top[site], found.parameters["top_k"]
    n_rows = min(k, len(peaks))
    if not n_rows:
        assert len(top.values) == 0
        return
    assert top.values.shape == top.samples.shape == top.positions.shape
    assert len(top.values) == n_rows
    for neuron in range(0, top.values.shape[1], 7):
        each = {n: record.values[at, neuron].max() for n, (record, at) in peaks.items()}
        best = sorted(each, key=lambda n: (-each[n], n))[:k]
        assert top.samples[:, neuron].tolist() == best
        same(top.values[:, neuron], torch.stack([each[n] for n in best]), rtol=rtol)
        is_vision = not site.startswith(("blocks", "encoder", "decoder"))
        for n, position in zip(best, top.positions[:, neuron].tolist(), strict=True):
            record, at = peaks[n]
            if is_vision and not ordered:
                continue
            assert position in at
            same(record.values[position, neuron], each[n], rtol=rtol)


@pytest.mark.sampled
@pytest.mark.parametrize("answers", [None, "own", "given"])
@pytest.mark.parametrize("name", FAMILIES)
def test_is_what_the_slow_way_gives(name: str, answers: Any) -> None:
    expected = records(name, samples_of(name), answers=answers)
    for batch_size in (1, 3):
        found = collected(name, answers=answers, batch_size=batch_size, top_k=3)
        check_against(found, expected, top_over="any", ordered="qwen" not in name)


def test_the_sites_are_those_of_activation_functions() -> None:
    for name in ("llava", "llava_next", "qwen2_5_vl"):
        assert set(MODULES[name]) == set(sites(built(name), "act"))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "instructblip-t5"])
def test_overlapping_types_and_other_thresholds(name: str) -> None:
    expected = records(name, samples_of(name), answers="own")
    found = collected(
        name,
        answers="own",
        batch_size=2,
        token_types=["text", "answer", "answer text", "image", "text+special", "any"],
        top_over="answer text+prompt special",
        top_k=2,
        active_above=0.05,
    )
    check_against(
        found,
        expected,
        top_over="answer text+prompt special",
        active_above=0.05,
        ordered="qwen" not in name,
    )


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "llava_next"])
def test_weighted_by_attention(name: str) -> None:
    expected = records(name, samples_of(name), answers="own", attention=True)
    found = collected(
        name, sites="blocks.*.mlp.hook_act", answers="own", attention=True, batch_size=3
    )
    for site in found.attention_sum:
        there = [record for record in expected[site] if record is not None]
        for token_type in found.attention_sum[site]:
            at = [(record, chosen(record, token_type)) for record in there]
            values = torch.cat([record.values[i] for record, i in at])
            weights = torch.cat([record.weights[i] for record, i in at])
            same(found.attention[site][token_type], weights.sum())
            same(found.attention_sum[site][token_type], weights @ values)
            same(found.attention_mean[site][token_type], weights @ values / weights.sum())


def test_attention_in_an_encoder_of_images() -> None:
    found = collected(
        "llava", sites="vision_encoder.blocks.1.mlp.hook_post", attention=True, batch_size=2
    )
    [site] = found.attention
    # All positions are images', and each query hands out 1 in all.
    assert float(found.attention[site]["image"]) == pytest.approx(found.count[site]["image"])


def test_in_float32() -> None:
    expected = records("llava", samples_of("llava"), answers="given")
    found = collect(
        built("llava", torch.float32), samples_of("llava"), answers="given", batch_size=3, top_k=3
    )
    check_against(found, expected, top_over="any")


@pytest.mark.parametrize("first", [0.0, 5e4])
def test_a_large_mean_does_not_drown_a_small_spread(first: float) -> None:
    torch.manual_seed(0)
    values = 1e3 + 1e-2 * torch.randn(4096, 64)  # float32: its square has no digit left for that
    values[0] += first
    found = moments_of(values, torch.arange(4096), active_above=0.0)
    expected = values.double()
    same(found.variance, expected.var(0, correction=0))
    same(found.mean, expected.mean(0))


def test_nothing_is_left_in_the_model() -> None:
    model, samples = built("llava"), samples_of("llava")
    before = model(model.prepare(text=samples[0].text, images=samples[0].images))
    collect(model, samples, attention=True, sites="blocks.*.mlp.hook_act")
    assert_no_hooks(model)
    after = model(model.prepare(text=samples[0].text, images=samples[0].images))
    assert torch.equal(before, after)
    assert not any(parameter.grad is not None for parameter in model.hf_model.parameters())


def test_the_top_can_be_left_out() -> None:
    found = collected("llava", top_k=0)
    assert all(len(top.values) == 0 for top in found.top.values())


def test_as_a_table() -> None:
    found = collected("llava", sites="blocks.*.mlp.hook_act", attention=True)
    frame = found.to_dataframe()
    assert len(frame) == 3 * 64 * 3
    row = frame[(frame["layer"] == 1) & (frame["index"] == 5) & (frame["token_type"] == "text")]
    assert row["mean"].item() == found.mean["blocks.1.mlp.hook_act"]["text"][5]
    assert row["count"].item() == found.count["blocks.1.mlp.hook_act"]["text"]
    assert {"std", "min", "max", "active_rate", "attention_mean"} <= set(frame)


def test_says_what_it_is() -> None:
    assert repr(collected("llava", sites="blocks.*.mlp.hook_act")) == (
        "NeuronStatistics(192 neurons at 3 hook points over 5 samples: image, text, special)"
    )


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k of at least 0"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"answers": "mine"}, "'own', 'given' or None"),
        ({"max_new_tokens": 0}, "max_new_tokens of at least 1"),
        ({"token_types": ["picture"]}, "cannot read the token type 'picture'"),
        ({"token_types": []}, "each of them once"),
        ({"token_types": ["text", "text"]}, "each of them once"),
        ({"top_over": "image text"}, "no position is all of"),
        ({"attention": True, "sites": "projector.hook_out"}, "does not come after an attention"),
        ({"attention": True, "sites": "blocks.0.hook_resid_pre"}, "does not come after"),
        ({"first_sample": -1}, "first_sample of at least 0"),
    ],
)
def test_bad_arguments_before_anything_runs(
    options: dict[str, Any], message: str, monkeypatch, unchecked
) -> None:
    monkeypatch.setattr(import_module("vlm_lens.passes.one_pass"), "make_batch", None)
    with pytest.raises(ValueError, match=message):
        collect(built("llava"), samples_of("llava"), **options)


def test_one_text_is_no_list_of_types(unchecked) -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        collect(built("llava"), samples_of("llava"), token_types="image")


def test_what_is_not_there_says_so() -> None:
    found = collected("llava", sites="blocks.0.mlp.hook_act", token_types=["text", "audio"])
    with pytest.raises(KeyError, match="no position there is of this type"):
        found.mean["blocks.0.mlp.hook_act"]["audio"]
    with pytest.raises(KeyError, match="it was not asked for"):
        found.mean["blocks.0.mlp.hook_act"]["image"]
    with pytest.raises(KeyError, match="no statistics of 'blocks.9.mlp.hook_act'"):
        found.mean["blocks.9.mlp.hook_act"]
    with pytest.raises(ValueError, match="attention was not asked for"):
        _ = found.attention_sum

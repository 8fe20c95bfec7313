"""CAN's score against the slow way, on plants, and through interruptions."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

from tests.analyses import planted
from tests.analyses.slow_can import MODULES, Run, slow_runs, slow_scores
from tests.conftest import assert_no_hooks
from tests.families import KINDS, build
from tests.families.base import picture
from tests.geometry.families import placeholder
from tests.tiny import build_tiny
from vlm_lens import HookedVLM
from vlm_lens.analyses import can, token_pool
from vlm_lens.analyses.importance import Importance
from vlm_lens.data import Sample
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks.names import HookNameError
from vlm_lens.neurons.sites import sites
from vlm_lens.passes import SamplesLeftOutWarning
from vlm_lens.passes.batch import Batch, make_batches
from vlm_lens.passes.forwards import losses
from vlm_lens.passes.watch import reduced

TEXTS = ["what color is the circle ?", "is the square red ?", "left", "two ?", "what is left ."]
ANSWERS = ["red circle", "two", "blue one .", "green", "left right"]
GIVEN: dict[str, Any] = {"target": "answer", "max_new_tokens": 1}
"""Scores given answers; the model's own, which is not used then, is kept short."""

SIZES = [(82, 50), (34, 66), (50, 34), (40, 40), (66, 34)]


@cache
def built(name: str, dtype: torch.dtype = torch.float64) -> HookedVLM:
    """A tiny model in high precision, whose sums are the same in any order."""
    if name == "llava":
        return build_tiny("clip-llama", dtype=dtype).model
    hf, processor = build(name, dtype=dtype)
    return HookedVLM(hf, processor=processor)


def samples_of(name: str, *, mixed: bool = True) -> list[Sample]:
    """Samples with pictures of all sizes; one without and one with two where the family can."""
    here = "<image>" if name == "llava" else placeholder(name)
    several = mixed and (name == "llava" or "text" in KINDS[name])
    counts = [1, 0, 2, 1, 1] if several else [1] * 5
    if name == "mllama":  # a text beside images has another loss than alone, in Hugging Face too
        counts[1] = 1
    pictures = iter(range(9))
    found = []
    for text, answer, count in zip(TEXTS, ANSWERS, counts, strict=True):
        numbers = [next(pictures) for _ in range(count)]
        images = [picture(i, size=SIZES[i % 5]) for i in numbers]
        found.append(Sample(images=images, text=f"{here * count} {text}", answer=answer))
    return found


@cache
def runs_of(name: str, dtype: torch.dtype = torch.float64) -> list[Run]:
    return slow_runs(built(name, dtype), samples_of(name), MODULES[name])


def close(found: Any, expected: dict[str, torch.Tensor], *, rtol: float = 1e-5) -> None:
    """Each score to a part of itself, or of the largest one of its hook point where it is tiny."""
    assert set(found) == set(expected)
    for name, values in expected.items():
        atol = rtol * float(values.abs().max())
        torch.testing.assert_close(
            found[name].double(), values.double(), rtol=rtol, atol=atol, msg=lambda m, n=name: n + m
        )


# Against the slow way -----------------------------------------------------------------------------


@cache
def batches_of(name: str, batch_size: int) -> list[Batch]:
    return make_batches(built(name), samples_of(name), batch_size=batch_size, **GIVEN)


def sums(
    model: HookedVLM, batch: Batch, names: list[str], importance: Importance
) -> dict[str, Tensor]:
    """What one batch adds to each hook point's sum."""
    states = reduced(model, batch, {"importance": importance}, names)
    return {name: state["sum"] for (_, name), state in states.items()}


@pytest.mark.sampled
@pytest.mark.parametrize("tokens", ["mean", "max", "sum", "last"])
@pytest.mark.parametrize("name", MODULES)
def test_a_batch_gives_what_the_slow_way_gives(name: str, tokens: Any) -> None:
    model, names = built(name), sites(built(name))
    assert set(MODULES[name]) == set(names)
    for alpha, batch_size in ((0.0, 4), (0.5, 4), (1.0, 4), (0.5, 1)):
        importance = Importance(alpha=alpha, tokens=tokens)
        batches = batches_of(name, batch_size)
        parts = [sums(model, batch, names, importance) for batch in batches]
        found = {n: torch.stack([p[n] for p in parts if n in p]).sum(0) / 5 for n in names}
        close(found, slow_scores(runs_of(name), alpha=alpha, tokens=tokens))


@pytest.mark.parametrize("name", MODULES)
def test_is_what_the_slow_way_gives(name: str) -> None:
    expected = slow_scores(runs_of(name), alpha=0.5, tokens="max")
    for batch_size in (2, 16):
        close(can.score(built(name), samples_of(name), batch_size=batch_size, **GIVEN), expected)


@pytest.mark.parametrize("tokens", ["mean", "max", "sum"])
@pytest.mark.parametrize("name", ["llava", "instructblip-t5"])
def test_without_the_first_token(name: str, tokens: Any) -> None:
    model, samples = built(name), samples_of(name)
    options = {"alpha": 0.5, "tokens": tokens, "first_token": False}
    expected = slow_scores(runs_of(name), **options)
    close(can.score(model, samples, **GIVEN, batch_size=3, **options), expected)


@pytest.mark.parametrize(("alpha", "power"), [(1.0, 0.0), (0.25, 0.75), (0.5, 0.0)])
def test_powers_of_the_activation(alpha: float, power: float) -> None:
    model, samples = built("llava"), samples_of("llava")
    options = {"alpha": alpha, "activation_power": power, "tokens": "sum"}
    expected = slow_scores(runs_of("llava"), **options)
    close(can.score(model, samples, **GIVEN, **options), expected)


def test_in_float32() -> None:
    model, samples = built("llava", torch.float32), samples_of("llava")
    expected = slow_scores(runs_of("llava", torch.float32), alpha=1.0)
    found = can.score(model, samples, alpha=1.0, tokens="mean", **GIVEN)
    for name, values in expected.items():
        assert (found[name] - values).abs().max() <= 1e-5 * values.abs().max(), name


def test_alpha_0_is_the_mean_activation_without_any_backward(monkeypatch) -> None:
    model, samples = built("llava"), samples_of("llava")
    monkeypatch.setattr(torch.Tensor, "backward", None)
    found = can.score(
        model, samples[:1], sites="blocks.1.mlp.hook_post", alpha=0, tokens="mean", **GIVEN
    )
    inputs = model.prepare(text=samples[0].text, images=samples[0].images, answer="red circle")
    _, kept = model.run_with_cache(inputs, names_filter="blocks.1.mlp.hook_post")
    [(name, values)] = found.items()
    assert torch.equal(values, kept[name].abs().mean((0, 1)).float())


def test_an_own_answer_is_what_the_model_generates() -> None:
    model = built("llava")
    samples = samples_of("llava")[:3]
    own = can.score(model, samples, target="own", max_new_tokens=4, batch_size=2)
    batches = make_batches(model, samples, max_new_tokens=4, batch_size=1)
    names = sites(model)
    importance = Importance(alpha=0.5)
    singly = [sums(model, batch, names, importance) for batch in batches]
    expected = {n: torch.stack([s[n] for s in singly if n in s]).sum(0) / 3 for n in names}
    close(own, expected)


def test_an_own_answer_scores_like_the_same_answer_given() -> None:
    tiny = planted.blank()
    planted.plant_gate(tiny)
    samples = planted.samples()
    given = [Sample(images=s.images, text=s.text, answer="red red red red") for s in samples]
    expected = slow_scores(slow_runs(tiny.model, given, MODULES["llava"]), alpha=0.5, tokens="max")
    found = can.score(tiny.model, samples, max_new_tokens=4)
    for name, values in expected.items():
        assert (found[name] - values).abs().max() <= 1e-5 * values.abs().max(), name


def test_a_text_is_scored_on_itself() -> None:
    model = built("llava")
    samples = [Sample(images=[], text=text) for text in TEXTS]
    options: dict[str, Any] = {"sites": "blocks.*", "target": "text", "max_new_tokens": 1}
    one, many = (can.score(model, samples, batch_size=size, **options) for size in (1, 5))
    close(many, dict(one))
    first = model(samples[0].text, return_type="loss", prepend_bos=True)
    [batch] = make_batches(model, samples[:1], target="text", max_new_tokens=1)
    assert losses(model, batch).item() == pytest.approx(first.item(), rel=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("tokens", ["mean", "max"])
def test_few_numbers_at_a_time_give_the_same(tokens: Any, monkeypatch) -> None:
    model, samples = built("llava_next"), samples_of("llava_next")
    whole = can.score(model, samples, tokens=tokens, **GIVEN)
    monkeypatch.setattr(token_pool, "_IN_CACHE", 100)
    close(can.score(model, samples, tokens=tokens, **GIVEN), dict(whole))


# Any other hook point -----------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "instructblip-llama"])
@pytest.mark.parametrize("which", ["act", "post", ["*hook_resid_post", "hook_embed", "*.hook_out"]])
def test_other_sites_do_not_depend_on_the_batch(name: str, which: Any) -> None:
    model, samples = built(name), samples_of(name)
    one, many = (
        can.score(model, samples, sites=which, **GIVEN, batch_size=size) for size in (1, 5)
    )
    assert list(one) == sites(model, which)
    close(many, dict(one))


@pytest.mark.parametrize("name", ["gemma3", "mllama", "mistral3", "internvl", "blip2-opt"])
def test_other_families_do_not_depend_on_the_batch(name: str) -> None:
    model, samples = built(name), samples_of(name)
    for tokens in ("mean", "max"):
        one, many = (
            can.score(model, samples, tokens=tokens, **GIVEN, batch_size=size) for size in (1, 5)
        )
        close(many, dict(one))


# What it leaves behind ----------------------------------------------------------------------------


def test_leaves_the_model_as_it_was() -> None:
    model, samples = built("llava"), samples_of("llava")
    bias = model.hf_model.model.multi_modal_projector.linear_1.bias
    bias.requires_grad_(False)
    try:
        flags = [parameter.requires_grad for parameter in model.hf_model.parameters()]
        with torch.no_grad():
            can.score(model, samples, **GIVEN)
        assert flags == [parameter.requires_grad for parameter in model.hf_model.parameters()]
        assert all(parameter.grad is None for parameter in model.hf_model.parameters())
        assert_no_hooks(model)
    finally:
        bias.requires_grad_(True)


def test_leaves_the_model_as_it_was_when_interrupted() -> None:
    model, samples = built("llava"), samples_of("llava")

    def interrupt(tensor: Any, hook: Any) -> None:
        raise KeyboardInterrupt

    hooks = model.hooks([("blocks.2.hook_resid_post", interrupt)])
    with pytest.raises(KeyboardInterrupt), hooks:
        can.score(model, samples, **GIVEN)
    assert all(parameter.requires_grad for parameter in model.hf_model.parameters())
    assert_no_hooks(model)


def test_what_no_sample_reaches_has_no_score() -> None:
    model, samples = built("llava"), [samples_of("llava")[1]]
    with pytest.warns(HookNeverFiredWarning, match="8 hook points have nothing to show"):
        found = can.score(model, samples, **GIVEN)
    assert {name.split(".")[0] for name in found} == {"blocks"}


def test_a_sample_without_an_image_counts_as_zero_in_the_encoder() -> None:
    model, samples = built("llava"), samples_of("llava")[:2]
    both, first = (
        can.score(model, some, **GIVEN, alpha=1.0, tokens="sum") for some in (samples, samples[:1])
    )
    name = "vision_encoder.blocks.0.mlp.hook_pre"
    torch.testing.assert_close(both[name], first[name] / 2)


def test_a_layer_that_nothing_reads_scores_zero() -> None:
    """The projector reads the tower's second to last layer."""
    found = can.score(built("llava"), samples_of("llava"), **GIVEN)
    assert not found["vision_encoder.blocks.2.hook_mlp_out"].any()
    assert found["vision_encoder.blocks.1.hook_mlp_out"].all()


# Low precision, and what is not finite ------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_ranks_alike(dtype: torch.dtype) -> None:
    samples = samples_of("llava")
    high = can.score(built("llava"), samples, **GIVEN)
    low = can.score(built("llava", dtype), samples, **GIVEN)
    assert all(values.dtype == torch.float32 for values in low.values())
    assert low.parameters["left_out"] == []
    assert len(high.top(50) & low.top(50)) > 40


def test_float16_holds_small_gradients() -> None:
    """Without the scale of the loss, most gradients of a sure answer are 0."""
    tiny = planted.blank()
    planted.plant_gate(tiny, size=0.8)
    tiny.hf.half()
    model = HookedVLM(tiny.hf, processor=tiny.processor)
    found = can.score(model, planted.samples()[:2], alpha=1.0, max_new_tokens=2)
    values = torch.cat([v for n, v in found.items() if n.startswith("blocks.0.mlp")])
    assert (values > 0).float().mean() > 0.9


def test_samples_that_are_not_finite_are_left_out_and_named() -> None:
    tiny = build_tiny("clip-llama", dtype=torch.float64)
    samples = samples_of("llava", mixed=False)
    model, spoilt = tiny.model, [1, 3]
    expected = can.score(model, [samples[i] for i in (0, 2, 4)], **GIVEN, batch_size=1)
    # A word that only these samples have makes everything behind it infinite or NaN.
    for i in spoilt:
        samples[i].text += " green"
    word = tiny.processor.tokenizer.convert_tokens_to_ids("green")
    tiny.hf.model.language_model.embed_tokens.weight.data[word] = torch.inf
    with pytest.warns(SamplesLeftOutWarning, match="2 of 5 samples do not count"):
        found = can.score(model, samples, **GIVEN, batch_size=4)
    assert found.parameters["left_out"] == spoilt
    assert found.parameters["not_finite"]["blocks.0.mlp.hook_pre"] == 2
    close(found, dict(expected))


def test_where_nothing_is_finite_it_is_refused() -> None:
    tiny = build_tiny("clip-llama")
    tiny.hf.model.language_model.norm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="none of the first 5 samples can be used; sample 0: "):
        can.score(tiny.model, samples_of("llava"), **GIVEN)


# What is noted, and what is refused ---------------------------------------------------------------


def test_notes_every_parameter() -> None:
    found = can.score(built("llava"), samples_of("llava"), **GIVEN, sites="post")
    assert found.method == "CAN"
    assert json.loads(json.dumps(found.parameters)) == found.parameters
    asked = {"alpha": 0.5, "activation_power": 1.0, "tokens": "max", "first_token": True}
    assert asked.items() <= found.parameters.items()
    assert found.parameters["n_samples"] == 5
    assert found.parameters["provenance"]["class"] == "LlavaForConditionalGeneration"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "expected alpha from 0 to 1, got 1.5"),
        ({"alpha": float("nan")}, "expected alpha from 0 to 1, got nan"),
        ({"activation_power": -1.0}, "expected activation_power from 0 to 1"),
        ({"alpha": 0.0, "activation_power": 0.0}, "every neuron scores alike"),
        ({"tokens": "last", "first_token": False}, "use one of the two"),
        ({"tokens": "last", "target": "text"}, "needs an answer"),
        ({"batch_size": 0}, "expected batch_size of at least 1"),
    ],
)
def test_refuses_before_any_work(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built("llava")
    monkeypatch.setattr(model, "forward", None)
    with pytest.raises(ValueError, match=message):
        can.score(model, samples_of("llava"), **options)
    with pytest.raises(HookNameError):
        can.score(model, samples_of("llava"), sites="blocks.9.mlp.hook_post")
    with pytest.raises(ValueError, match="at least one sample"):
        can.score(model, [])

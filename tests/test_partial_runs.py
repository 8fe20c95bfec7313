"""Runs of some layers, on every family: up to one of them, and from one of them on."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import ENCODER_DECODERS, KINDS
from tests.test_families import Built
from tests.test_families import family_with_text as family  # noqa: F401 - a fixture
from tests.tiny import Tiny
from vlm_lens.hooked_root import HookNeverFiredWarning

# Their layers read of each position more than its stream: where images are, or images themselves.
READ_MORE = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paligemma", "gemma3", "mllama"]
# Their towers are run again, for what they hand to layers besides the stream.
READ_MEDIA = ["qwen3_vl", "mllama"]


def prefix(family: Built) -> str:  # noqa: F811
    return "decoder." if family.name in ENCODER_DECODERS else ""


def streams_of(family: Built, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[int, Tensor]]:  # noqa: F811
    """The logits, and the stream before each layer that runs, and behind the last one."""
    before, behind = prefix(family) + "blocks.*.hook_resid_pre", "blocks.2.hook_resid_post"
    names = [before, prefix(family) + behind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HookNeverFiredWarning)
        logits, cache = family.model.run_with_cache(inputs, names_filter=names)
    numbers = {name: int(name.split("blocks.")[1][0]) for name in cache}
    return logits, {n + name.endswith("post"): cache[name] for name, n in numbers.items()}


def layers_run(family: Built, *args: Any, **options: Any) -> list[str]:  # noqa: F811
    """What a forward ran: the numbers of the layers, and "tower" for the vision or audio tower."""
    ran: list[str] = []
    parts = {str(i): layer for i, layer in enumerate(family.model.text.layers)}
    for part in family.model.parts:
        if part.kind == "tower":
            parts["tower"] = part.module.blocks[0].hf_module
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in parts.items()
    ]
    try:
        family.model(*args, **options)
    finally:
        for handle in handles:
            handle.remove()
    return ran


@pytest.mark.sampled
@torch.no_grad()
def test_a_run_stops_with_what_enters_the_layer_and_starts_with_it(family: Built):  # noqa: F811
    model, hf_layers = family.model, list(family.model.text.layers)
    for kind in KINDS[family.name]:
        inputs = family.inputs(kind)
        logits, streams = streams_of(family, inputs)
        for n, stream in streams.items():
            assert torch.equal(model(inputs, stop_at_layer=n), stream), (kind, n)
            if n == 3:
                continue
            assert torch.equal(model(**inputs, stop_at_layer=n - 3), stream), (kind, n)
            if family.name not in ENCODER_DECODERS:
                again = model(stream, start_at_layer=n, **inputs)
                assert torch.equal(again, logits), (kind, n)
                between = model(stream, start_at_layer=n, stop_at_layer=3, **inputs)
                assert torch.equal(between, streams[3]), (kind, n)
        assert torch.equal(family.hf(**inputs).logits, logits), kind
    assert list(model.text.layers) == hf_layers


@torch.no_grad()
def test_the_stream_alone_is_enough_where_layers_read_nothing_else(family: Built):  # noqa: F811
    inputs = family.inputs("image")
    logits, streams = streams_of(family, inputs)
    if family.name in ENCODER_DECODERS:
        with pytest.raises(ValueError, match="cannot start at a layer: its decoder's first layer"):
            family.model(streams[1], start_at_layer=1)
    elif family.name in READ_MORE:
        with pytest.raises(
            ValueError, match="read more than the residual stream .*pass its inputs"
        ):
            family.model(streams[1], start_at_layer=1)
    else:
        mask = inputs["attention_mask"]
        again = family.model(streams[1], start_at_layer=1, attention_mask=mask)
        assert torch.equal(again, logits)


@torch.no_grad()
def test_what_is_not_asked_for_does_not_run(family: Built):  # noqa: F811
    inputs = family.inputs("image")
    assert {"1", "2"}.isdisjoint(layers_run(family, inputs, stop_at_layer=1))
    assert "0" in layers_run(family, inputs, stop_at_layer=1)
    if family.name not in ENCODER_DECODERS:
        _, streams = streams_of(family, inputs)
        tower = {"tower"} if family.name in READ_MEDIA else set()
        assert set(layers_run(family, streams[2], start_at_layer=2, **inputs)) == {"2", *tower}


@torch.no_grad()
def test_hooks_fire_in_what_runs_and_nowhere_else(family: Built):  # noqa: F811
    model, inputs, before = family.model, family.inputs("image"), prefix(family)
    stream, cache = model.run_with_cache(inputs, stop_at_layer=1)
    assert {name.split(".")[len(before) // 8 + 1] for name in cache if "blocks" in name} >= {"0"}
    text = [name for name in cache if name.startswith(f"{before}blocks.")]
    assert {name.removeprefix(before).split(".")[1] for name in text} == {"0"}
    assert not any("ln_final" in name for name in cache if name.startswith(f"{before}ln"))
    embedded, cache = model.run_with_cache(inputs, stop_at_layer=0)
    start = cache[f"{before}hook_embed"]
    if "hook_pos_embed" in cache:
        start = start + cache["hook_pos_embed"]
    assert torch.equal(start, embedded)
    assert not any(name.startswith(f"{before}blocks.") for name in cache)
    if family.name not in ENCODER_DECODERS:
        _, cache = model.run_with_cache(stream, start_at_layer=1, **inputs)
        assert {"hook_embed", "hook_pos_embed"}.isdisjoint(cache.keys())
        assert {name.split(".")[1] for name in cache if name.startswith("blocks.")} == {"1", "2"}


def test_gradients_flow_through_both_halves(llava: Tiny):
    inputs = llava.inputs("text")
    embed = llava.hf.get_input_embeddings().weight
    whole = torch.autograd.grad(llava.model(inputs)[0, -1].sum(), embed)[0]
    stream = llava.model(inputs, stop_at_layer=1)
    halves = torch.autograd.grad(llava.model(stream, start_at_layer=1)[0, -1].sum(), embed)[0]
    assert torch.equal(whole, halves)


def test_a_hook_edits_the_stream_that_a_run_stops_with(llava: Tiny):
    inputs = llava.inputs("text")
    hook = ("blocks.0.hook_resid_post", lambda t, hook: t * 0)
    assert not llava.model.run_with_hooks(inputs, fwd_hooks=[hook], stop_at_layer=1).any()
    last = ("blocks.2.hook_resid_post", lambda t, hook: t * 0)
    assert not llava.model.run_with_hooks(inputs, fwd_hooks=[last], stop_at_layer=3).any()


def test_a_hook_behind_the_stop_is_told_why_it_is_silent(llava: Tiny):
    hook = ("blocks.2.hook_mlp_out", lambda t, hook: None)
    with pytest.warns(HookNeverFiredWarning, match="blocks.2.*Of the .* layers, 0 to 1 ran"):
        llava.model.run_with_hooks(llava.inputs("text"), fwd_hooks=[hook], stop_at_layer=2)


def test_nothing_is_left_after_an_exception(llava: Tiny):
    layers = llava.model.text.layers
    before, inputs = list(layers), llava.inputs("text")
    logits, stream = llava.model(inputs), llava.model(inputs, stop_at_layer=1)
    hook = ("blocks.1.hook_mlp_out", lambda t, hook: 1 / 0)
    for options in ({"start_at_layer": 1}, {"start_at_layer": 1, "stop_at_layer": 2}):
        with pytest.raises(ZeroDivisionError):
            llava.model.run_with_hooks(stream, fwd_hooks=[hook], **options)
        assert list(layers) == before
        assert not llava.model.hook_embed.asleep
    assert torch.equal(llava.model(inputs), logits)


def test_backward_starts_at_a_loss(llava: Tiny):
    with pytest.raises(ValueError, match="incl_bwd or stop_at_layer, got both"):
        llava.model.run_with_cache(llava.inputs("text"), stop_at_layer=1, incl_bwd=True)


def test_a_loss_needs_the_tokens(llava: Tiny):
    inputs = llava.inputs("text")
    stream = llava.model(inputs, stop_at_layer=2)
    loss = llava.model(stream, "loss", start_at_layer=2, **inputs)
    assert torch.equal(loss, llava.model(**inputs, return_type="loss"))
    with pytest.raises(ValueError, match="input_ids"):
        llava.model(stream, "loss", start_at_layer=2)


def test_what_enters_the_first_layer_as_transformer_lens_hands_it_out(llava: Tiny):
    inputs = llava.inputs("batch")
    stream, tokens, none, mask = llava.model.input_to_embed(inputs)
    assert none is None
    assert torch.equal(tokens, inputs.input_ids)
    assert torch.equal(mask, inputs.attention_mask)
    again = llava.model(stream, start_at_layer=0, attention_mask=mask)
    assert torch.equal(again, llava.model(inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_at_layer": 4}, "stop_at_layer from -3 to 3, .* 3 layers, got 4"),
        ({"stop_at_layer": -4}, "stop_at_layer from -3 to 3"),
        ({"start_at_layer": 3}, "start_at_layer from -3 to 2"),
        ({"start_at_layer": 2, "stop_at_layer": 1}, "not behind stop_at_layer, got layers 2 and 1"),
        ({"stop_at_layer": True}, "number of a layer, got True"),
        ({"stop_at_layer": 1, "past_key_values": object()}, "half a step behind"),
        ({"start_at_layer": 1}, r"Expected a residual stream \[batch, pos, 32\].*got Inputs"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_makes_no_sense_is_refused(llava: Tiny, options: dict[str, Any], message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        llava.model(llava.inputs("text"), **options)

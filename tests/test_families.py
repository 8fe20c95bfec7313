"""Every family under one set of names: each test runs on each, a new family is tested by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import assert_no_hooks
from tests.families import ALL_MODELS, KINDS, TEXT_MODELS, TOWERS, build, example
from vlm_lens import HookedVLM
from vlm_lens.architectures.components import HookedAttention, HookedBlock
from vlm_lens.hooks import ArchitectureError
from vlm_lens.parts import given_by


@dataclass
class Built:
    """A tiny model of a family, and its example inputs."""

    name: str

    def __post_init__(self) -> None:
        self.hf, self.processor = build(self.name)
        self.model = HookedVLM(self.hf, processor=self.processor)

    def inputs(self, kind: str) -> dict[str, Tensor]:
        return example(self.name, self.hf, self.processor, kind)

    @cached_property
    def cache(self) -> dict[str, Tensor]:
        """Everything about one image, or one text."""
        with torch.no_grad():
            _, cache = self.model.run_with_cache(
                self.inputs("image"), names_filter="*", return_cache_object=False
            )
        return cache

    def modules_of(self, kind: type) -> dict[str, Any]:
        return {n: m for n, m in self.model.named_modules() if isinstance(m, kind)}


BUILT: dict[str, Built] = {}


@pytest.fixture(params=ALL_MODELS)
def family(request: pytest.FixtureRequest):
    if request.param not in BUILT:
        BUILT[request.param] = Built(request.param)
    yield BUILT[request.param]
    assert_no_hooks(BUILT[request.param].model)


@pytest.fixture(params=[name for name in ALL_MODELS if name not in TOWERS])
def family_with_text(request: pytest.FixtureRequest):
    if request.param not in BUILT:
        BUILT[request.param] = Built(request.param)
    yield BUILT[request.param]
    assert_no_hooks(BUILT[request.param].model)


def read(tensor, hook):
    """A hook that only looks."""


@pytest.mark.filterwarnings("ignore::vlm_lens.hooked_root.HookNeverFiredWarning")
@pytest.mark.parametrize("gradients", [False, True])
def test_logits_are_bit_identical_idle_and_while_reading(family: Built, gradients: bool):
    for kind in KINDS[family.name]:
        inputs = family.inputs(kind)
        with torch.set_grad_enabled(gradients):
            expected = given_by(family.hf(**inputs))
            assert torch.equal(family.model(inputs), expected)
            hooked = family.model.run_with_hooks(inputs, fwd_hooks=[("*", read)])
            assert torch.equal(hooked, expected), kind
            assert torch.equal(given_by(family.hf(**inputs)), expected)


def test_every_hook_point_fires_once(family: Built):
    counts = dict.fromkeys(family.model.hook_dict, 0)

    def count(tensor, hook):
        counts[hook.name] += 1

    family.model.run_with_hooks(family.inputs("image"), fwd_hooks=[("*", count)])
    assert {name: n for name, n in counts.items() if n != 1} == {}


def test_hooks_fire_in_every_step_of_generate(family: Built):
    if family.name in TOWERS:
        with pytest.raises(ArchitectureError, match="language model for generate"):
            family.model.generate(family.inputs("image"))
        return
    counts = dict.fromkeys(family.model.hook_dict, 0)

    def count(tensor, hook):
        counts[hook.name] += 1

    inputs = family.inputs("image")
    inputs.pop("decoder_input_ids", None)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    plain = family.hf.generate(**inputs, **options)
    with family.model.hooks([("*", count)]):
        hooked = family.hf.generate(**inputs, **options)
    assert torch.equal(plain, hooked)
    assert {name for name, n in counts.items() if n == 0} == set()
    prefix = "decoder." if family.model.cfg.is_encoder_decoder else ""
    assert counts[f"{prefix}blocks.0.mlp.hook_post"] == 3


@pytest.mark.sampled
def test_verify_finds_every_hook_point_alive(family: Built):
    found = family.model.verify(family.inputs("image"))
    assert found.absent == {}
    assert found.largest_row_error < 1e-5
    expected = {"llava_next": 17, "instructblip-llama": 2, "instructblip-t5": 2}
    assert len(found.unread) == expected.get(family.name, 0)


def of_each_kind(model: HookedVLM) -> list[str]:
    """The first and the last of the hook points that differ in the number of their block only."""
    names = list(model.hook_dict)
    first, last = (
        {re.sub(r"\.\d+\.", ".", name): name for name in some} for some in (names[::-1], names)
    )
    return list(dict.fromkeys([*first.values(), *last.values()]))


@pytest.mark.full
def test_writing_anywhere_changes_the_logits(family: Built):
    """The same as `verify` finds with gradients, with a write at a hook point of each kind."""
    inputs, model = family.inputs("image"), family.model
    unread = model.verify(inputs).unread
    with torch.no_grad():
        clean = model(inputs)
        for name in of_each_kind(model):
            hook = (name, lambda t, hook: t * 1.5 + 0.1)
            changed = model.run_with_hooks(inputs, fwd_hooks=[hook])
            assert torch.equal(clean, changed) == (name in unread), name


@pytest.mark.full
def test_writing_back_what_was_read_changes_nothing(family: Built):
    """So the way into the plain layout and the way back are each other's inverse."""
    each = of_each_kind(family.model)
    for kind in KINDS[family.name]:
        if kind == "text" and family.name not in TEXT_MODELS:
            continue
        inputs = family.inputs(kind)
        whole = family.name in TOWERS or family.model.cfg.is_encoder_decoder
        real = ... if whole else inputs["attention_mask"].bool()
        hooks = [(name, lambda t, hook: t.clone()) for name in family.model.hook_dict]
        single = [[hook] for hook in hooks if hook[0] in each]
        with torch.no_grad():
            clean = family.model(inputs)[real]
            # One by one where one image is seen, and all at once for all other kinds of inputs.
            for some in [*single, hooks] if kind != "batch" and kind != "images" else [hooks]:
                same = family.model.run_with_hooks(inputs, fwd_hooks=some)[real]
                torch.testing.assert_close(same, clean, rtol=1e-4, atol=1e-4)


def test_in_place_writing_counts_too(family: Built):
    def halve(tensor, hook):
        tensor[:] = tensor * 0.5

    inputs, model = family.inputs("image"), family.model
    tower = next((f"{part.name}." for part in model.parts if part.kind == "tower"), "")
    tower = tower or model.text.prefix
    with torch.no_grad():
        for name in (f"{tower}blocks.0.mlp.hook_pre", f"{tower}blocks.0.attn.hook_q"):
            new = model.run_with_hooks(inputs, fwd_hooks=[(name, lambda t, hook: t * 0.5)])
            assert torch.equal(model.run_with_hooks(inputs, fwd_hooks=[(name, halve)]), new)


def test_weights_and_activations_satisfy_the_equations_of_mlps(family: Built):
    for name, block in family.modules_of(HookedBlock).items():
        if block.post_norm:
            crossed = "_cross" if hasattr(block, "cross_attn") else ""
            stream = family.cache[f"{name}.hook_resid_mid{crossed}"]
            normalized = stream[:, : family.hf.config.num_query_tokens]
        else:
            normalized = family.cache[f"{name}.ln2.hook_normalized"] * block.ln2.w + block.ln2.b
        pre = normalized @ block.mlp.W_in + block.mlp.b_in
        found = family.cache[f"{name}.mlp.hook_pre"]
        if block.mlp.gated:
            gate = normalized @ block.mlp.W_gate
            torch.testing.assert_close(gate + block.mlp.b_gate, found, rtol=1e-3, atol=1e-3)
            found = family.cache[f"{name}.mlp.hook_pre_linear"]
            act = family.cache[f"{name}.mlp.hook_act"]
            post = family.cache[f"{name}.mlp.hook_post"]
            torch.testing.assert_close(act * found, post, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pre, found, rtol=1e-3, atol=1e-3)
        if not hasattr(block, "ln2_post"):
            out = family.cache[f"{name}.mlp.hook_post"] @ block.mlp.W_out + block.mlp.b_out
            out = out if block.mlp_scale is None else out * block.mlp_scale
            torch.testing.assert_close(
                out, family.cache[f"{name}.hook_mlp_out"], rtol=1e-3, atol=1e-3
            )


def test_weights_and_activations_satisfy_the_equations_of_attention(family: Built):
    for name, block in family.modules_of(HookedBlock).items():
        if not hasattr(block, "attn"):
            continue
        if block.post_norm:
            normalized = family.cache[f"{name}.hook_resid_pre"]
        else:
            normalized = family.cache[f"{name}.ln1.hook_normalized"] * block.ln1.w + block.ln1.b
        for part in "QKV":
            weight, bias = getattr(block.attn, f"W_{part}"), getattr(block.attn, f"b_{part}")
            heads = torch.einsum("bpd,hde->bphe", normalized, weight) + bias
            found = family.cache[f"{name}.attn.hook_{part.lower()}"]
            torch.testing.assert_close(heads, found, rtol=1e-3, atol=1e-3)


def test_patterns_are_those_of_eager_attention(family: Built):
    """Where a module hands its eager attention weights out, they are the pattern, bit for bit."""
    before = family.hf.config._attn_implementation
    family.hf.set_attn_implementation("eager")
    attentions = family.modules_of(HookedAttention)
    weights: dict[str, Tensor] = {}
    handles = []
    for name, attention in attentions.items():

        def keep(_module, _args, output, name=name):
            if isinstance(output, tuple) and isinstance(output[-1], Tensor):
                weights[name] = output[-1]

        handles.append(attention.hf_module.register_forward_hook(keep))
    inputs = family.inputs("image")
    family.hf(**inputs)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        _, cache = family.model.run_with_cache(inputs, names_filter="*.hook_pattern")
    family.hf.set_attn_implementation(before)
    packed = "qwen" in family.name and family.name != "qwen2_audio"
    expected = [name for name in attentions if not (packed and name.startswith("vision"))]
    assert set(weights) >= set(expected)
    for name in expected:
        torch.testing.assert_close(cache[f"{name}.hook_pattern"], weights[name], rtol=0, atol=0)


def test_the_cache_computes_patterns_that_were_not_kept(family: Built):
    inputs = family.inputs("image")
    with torch.no_grad():
        _, kept = family.model.run_with_cache(inputs, names_filter="*.hook_pattern")
        _, cache = family.model.run_with_cache(inputs)
    for name in kept:
        torch.testing.assert_close(cache[name], kept[name], rtol=1e-5, atol=1e-6)

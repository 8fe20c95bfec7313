"""Hook points behind switches, against hand-made runs, and the tools of TransformerLens on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformer_lens import patching
from transformer_lens.tools.analysis.attribution_patching import (
    EdgeAttributionConfig,
    attribution_patch,
)
from transformer_lens.utilities import get_act_name

from tests.conftest import assert_no_hooks
from tests.families import KINDS, MODELS, build, example
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM
from vlm_lens.hooks import HookNameError

SWITCHES = {
    "attn_result": ["attn.hook_result"],
    "split_qkv_input": ["attn.hook_q_input", "attn.hook_k_input", "attn.hook_v_input"],
    "attn_in": ["attn.hook_attn_in"],
    "hook_mlp_in": ["hook_mlp_in"],
}
HEAD = 1


@pytest.fixture(scope="module", params=MODELS)
def family(request: pytest.FixtureRequest) -> tuple[HookedVLM, Any]:
    hf, processor = build(request.param)
    kind = "batch" if "batch" in KINDS[request.param] else "image"
    return HookedVLM(hf, processor=processor), example(request.param, hf, processor, kind)


@pytest.fixture
def switched(family: tuple[HookedVLM, Any]) -> Iterator[tuple[HookedVLM, Any]]:
    """With everything switched on that goes together and that the family has."""
    model, _ = family
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    if not model.cfg.architecture.startswith("Kosmos2"):
        model.set_use_attn_result(True)
    yield family
    all_off(model)


def all_off(model: HookedVLM) -> None:
    for switch in SWITCHES:
        getattr(model, f"set_use_{switch}")(False)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def prefix(model: HookedVLM) -> str:
    return "decoder." if model.cfg.is_encoder_decoder else ""


def own_block(model: HookedVLM) -> tuple[str, Any]:
    """A block that attends to the text, and its name."""
    return f"{prefix(model)}blocks.0.", model._language.blocks[0]


def points(model: HookedVLM) -> list[str]:
    ends = tuple(name for names in SWITCHES.values() for name in names)
    return [name for name in model.hook_dict if name.endswith(ends)]


@pytest.mark.sampled
@pytest.mark.parametrize("gradients", [False, True])
def test_reading_changes_not_a_bit(switched: tuple[HookedVLM, Any], gradients: bool):
    model, inputs = switched
    with torch.set_grad_enabled(gradients):
        clean = model(inputs)
        logits, cache = model.run_with_cache(inputs, names_filter=points(model))
    assert torch.equal(logits, clean)
    assert set(cache) == set(points(model))


def test_switched_off_nothing_is_there(family: tuple[HookedVLM, Any]):
    model, inputs = family
    before = list(model.hook_dict)
    model.set_use_hook_mlp_in(True)
    model.add_hook("*.hook_mlp_in", lambda tensor, hook: tensor * 0, is_permanent=True)
    assert len(model.hook_dict) > len(before)
    model.set_use_hook_mlp_in(False)
    assert list(model.hook_dict) == before
    assert_no_hooks(model)
    for switch, names in SWITCHES.items():
        for name in names:
            with pytest.raises(HookNameError, match=rf"model.set_use_{switch}\(True\)"):
                model.run_with_hooks(inputs, fwd_hooks=[(f"blocks.0.{name}", print)])


def read_by_mlp(block: Any) -> str:
    """The stream that enters the norm before the MLP."""
    if block.parallel:
        return "hook_resid_pre"
    return "hook_resid_mid_cross" if hasattr(block, "cross_attn") else "hook_resid_mid"


def test_the_values_are_what_their_names_say(switched: tuple[HookedVLM, Any]):
    model, inputs = switched
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs)
    name, block = own_block(model)
    heads, kv = model.cfg.n_heads, model.cfg.n_key_value_heads or model.cfg.n_heads
    for kind, n in (("q", heads), ("k", kv), ("v", kv)):
        copies = cache[f"{name}attn.hook_{kind}_input"]
        assert copies.shape[-2] == n
        assert torch.equal(copies, cache[f"{name}hook_resid_pre"][..., None, :].expand_as(copies))
    assert torch.equal(cache[f"{name}hook_mlp_in"], cache[name + read_by_mlp(block)])
    if not block.attn.norms_heads:
        results = cache[f"{name}attn.hook_result"]
        by_head = torch.einsum("...hd,hdm->...hm", cache[f"{name}attn.hook_z"], block.attn.W_O)
        assert_near(results, by_head)
        summed = results.sum(-2) + block.attn.b_O
        post = getattr(block, "ln1_post", None)
        assert_near(summed if post is None else post(summed), cache[f"{name}hook_attn_out"])


def of_head(new: Tensor) -> Callable[..., Tensor]:
    """A hook that gives one head another tensor."""

    def write(tensor: Tensor, hook: Any) -> Tensor:
        tensor = tensor.clone()
        tensor[..., HEAD % tensor.shape[-2], :] = new
        return tensor

    return write


def run(model: HookedVLM, inputs: Any, *hooks: tuple[str, Callable[..., Tensor | None]]) -> Tensor:
    with torch.no_grad():
        return model.run_with_hooks(inputs, fwd_hooks=list(hooks))


@pytest.mark.sampled
@pytest.mark.parametrize("kind", ["q", "k", "v"])
def test_what_a_head_reads_changes_what_it_makes_of_it_alone(
    switched: tuple[HookedVLM, Any], kind: str
):
    """As writing that head's query, key or value by hand, computed with its norm and weights."""
    model, inputs = switched
    name, block = own_block(model)
    attention, index = block.attn, HEAD % (model.cfg.n_key_value_heads or model.cfg.n_heads)
    index = HEAD if kind == "q" else index
    with torch.no_grad():
        clean, cache = model.run_with_cache(inputs, names_filter=f"{name}hook_resid_pre")
        new = torch.randn_like(cache[f"{name}hook_resid_pre"])
        weight, bias = (getattr(attention, f"{part}_{kind.upper()}")[index] for part in "Wb")
        by_hand = block.ln1(new) @ weight + bias
    found = run(model, inputs, (f"{name}attn.hook_{kind}_input", of_head(new)))
    expected = run(model, inputs, (f"{name}attn.hook_{kind}", of_head(by_hand)))
    assert_near(found, expected)
    assert (found - clean).abs().max() > 1e-4
    # Whatever reads beside it changes nothing.
    everything = [(point, lambda tensor, hook: None) for point in model.hook_dict]
    both = run(model, inputs, *everything, (f"{name}attn.hook_{kind}_input", of_head(new)))
    assert_near(both, expected)


def test_a_heads_result_is_its_part_of_the_output(switched: tuple[HookedVLM, Any]):
    """Without it, attention adds what the other heads add."""
    model, inputs = switched
    name, block = own_block(model)
    if block.attn.norms_heads:
        with pytest.raises(ValueError, match="a norm over all heads comes first"):
            model.set_use_attn_result(True)
        return
    zero = torch.zeros(model.cfg.d_model)
    found = run(model, inputs, (f"{name}attn.hook_result", of_head(zero)))
    expected = run(model, inputs, (f"{name}attn.hook_z", of_head(torch.zeros(model.cfg.d_head))))
    assert_near(found, expected)


@pytest.mark.parametrize("first", ["hook_mlp_in", "stream"])
def test_the_mlp_alone_sees_what_is_written_in_front_of_it(
    switched: tuple[HookedVLM, Any], first: str
):
    model, inputs = switched
    name, block = own_block(model)
    stream = read_by_mlp(block)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=name + stream)
        new = torch.randn_like(cache[name + stream])
        inside = block.ln2.normalized(new)
    expected = run(
        model,
        inputs,
        (name + stream, lambda tensor, hook: tensor * 1.5),
        (f"{name}ln2.hook_normalized", lambda tensor, hook: inside),
    )
    hooks = [
        (f"{name}hook_mlp_in", lambda tensor, hook: new),
        (name + stream, lambda tensor, hook: tensor * 1.5),
    ]
    found = run(model, inputs, *(hooks if first == "hook_mlp_in" else hooks[::-1]))
    assert_near(found, expected)


def test_gradients_of_the_copies_add_up_to_that_of_the_stream(switched: tuple[HookedVLM, Any]):
    model, inputs = switched
    name, block = own_block(model)
    # What an MLP beside attention reads is a part of its own, with the stream that goes past it.
    others = ["hook_mlp_in", "hook_resid_post"] if block.parallel else ["hook_resid_mid"]
    gradients: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: Any) -> None:
        gradients[hook.name.removeprefix(name)] = gradient.detach().clone()

    sites = [f"attn.hook_{kind}_input" for kind in "qkv"]
    sites += ["hook_resid_pre", *others]
    with torch.enable_grad(), model.hooks(bwd_hooks=[(name + site, keep) for site in sites]):
        logits = model(inputs)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        (logits * weights).sum().backward()
    copies = sum(gradients[f"attn.hook_{kind}_input"].sum(-2) for kind in "qkv")
    torch.testing.assert_close(
        gradients["hook_resid_pre"],
        sum(gradients[site] for site in others) + copies,
        rtol=1e-3,
        atol=1e-4,
    )


def test_one_copy_for_query_key_and_value(family: tuple[HookedVLM, Any]):
    model, inputs = family
    shared = (model.cfg.n_key_value_heads or model.cfg.n_heads) != model.cfg.n_heads
    if shared:
        with pytest.raises(ValueError, match=r"2 for 4|1 for 4"):
            model.set_use_attn_in(True)
        assert not model.cfg.use_attn_in
        return
    name, _ = own_block(model)
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=f"{name}hook_resid_pre")
    write = of_head(torch.randn_like(cache[f"{name}hook_resid_pre"]))
    model.set_use_split_qkv_input(True)
    expected = run(model, inputs, *((f"{name}attn.hook_{kind}_input", write) for kind in "qkv"))
    with pytest.raises(ValueError, match=r"set_use_split_qkv_input\(False\)"):
        model.set_use_attn_in(True)
    model.set_use_split_qkv_input(False)
    model.set_use_attn_in(True)
    with pytest.raises(ValueError, match=r"set_use_attn_in\(False\)"):
        model.set_use_split_qkv_input(True)
    assert_near(run(model, inputs, (f"{name}attn.hook_attn_in", write)), expected)
    all_off(model)


@pytest.fixture
def llama() -> Tiny:
    """With as many keys as queries, as the tools ask for."""
    return build_tiny("clip-llama")


def test_a_copy_has_the_same_points(llama: Tiny):
    llama.model.set_use_attn_result(True)
    copied = copy.deepcopy(llama.model)
    assert list(copied.hook_dict) == list(llama.model.hook_dict)
    assert copied.cfg.use_attn_result
    assert not copied.cfg.use_hook_mlp_in
    copied.set_use_attn_result(False)
    assert not points(copied)
    assert points(llama.model)


def test_both_of_transformer_lens_names_are_known(llama: Tiny):
    model = llama.model
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    names = [get_act_name(name, 1) for name in ("q_input", "result")]
    _, cache = model.run_with_cache(llama.inputs("image"), names_filter=names, pos_slice=-1)
    assert set(cache) == {"blocks.1.attn.hook_q_input", "blocks.1.attn.hook_result"}
    assert cache["q_input", 1].shape == cache["result", 1].shape == (1, 1, 4, 32)
    _, cache = model.run_with_cache(llama.inputs("image"))
    stacked = cache.stack_head_results(layer=2, pos_slice=-1)
    torch.testing.assert_close(stacked[5], cache["result", 1][:, -1, 1])


def test_generation_and_verification_go_through_them(llama: Tiny):
    model, inputs = llama.model, llama.inputs("image")
    expected = model.generate(inputs, max_new_tokens=4, return_type="tokens")
    for switch in ("attn_result", "split_qkv_input", "hook_mlp_in"):
        getattr(model, f"set_use_{switch}")(True)
    tokens, cache = model.generate_with_cache(inputs, max_new_tokens=4, names_filter=points(model))
    assert torch.equal(tokens, expected)
    _, whole = model.run_with_cache(
        {**dict(inputs), "input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
        names_filter=points(model),
    )
    for name, value in cache.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-4)
    assert model.verify(inputs).n_points == len(model.hook_dict)


def runs(tiny: Tiny) -> tuple[HookedVLM, Tensor, Any, Any]:
    """A corrupted prompt, and the caches of a clean one and of it."""
    model = tiny.model
    clean, corrupted = (model.to_tokens(f"what color is the {w} ?") for w in ("circle", "red"))
    caches = [model.run_with_cache(tokens)[1] for tokens in (clean, corrupted)]
    return model, corrupted, *caches


@pytest.mark.parametrize(("name", "component"), [("llama", "q"), ("llama", "v"), ("mistral", "q")])
def test_path_patching_of_transformer_lens(name: str, component: Any):
    """Against a hand-made patch of the same edge."""
    with torch.no_grad():
        model, corrupted, clean_cache, cache = runs(build_tiny(f"clip-{name}"))

        def metric(logits: Tensor) -> Tensor:
            return logits[0, -1, 7]

        found = patching.get_act_patch_direct_path(
            model, corrupted, clean_cache, cache, metric, 0, 2, component, verbose=False
        )
        block, attention = model.blocks[1], model.blocks[1].attn
        moved = clean_cache["z", 0][:, :, 2] - cache["z", 0][:, :, 2]
        new = block.ln1(cache["resid_pre", 1] + moved @ model.W_O[0, 2])
        weights = [getattr(attention, f"{part}_{component.upper()}")[HEAD] for part in "Wb"]
        by_hand = of_head(new @ weights[0] + weights[1])
        logits = run(model, corrupted, (f"blocks.1.attn.hook_{component}", by_hand))
    assert_near(found[1, HEAD], metric(logits))
    assert not model.cfg.use_split_qkv_input
    assert_no_hooks(model)


@pytest.mark.parametrize("name", ["gemma3", "kosmos2"])
def test_path_patching_is_refused_where_heads_do_not_write_to_the_stream(name: str):
    hf, processor = build(name)
    model = HookedVLM(hf, processor=processor)
    tokens = model.to_tokens("what color ?")
    with pytest.raises(ValueError, match="normalized or scaled before the residual add"):
        patching.get_act_patch_direct_path(model, tokens, {}, {}, lambda x: x, 0, 0)  # type: ignore[arg-type]


def test_edge_attribution_of_transformer_lens(llama: Tiny):
    """What leaves a part along all edges is what attribution by nodes gives the part as a whole."""
    model = llama.model
    clean, corrupted = (model.to_tokens(f"what color is the {w} ?") for w in ("circle", "red"))

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, 7] - logits[0, -1, 8]

    by_edge, by_node = (
        attribution_patch(model, clean, corrupted, metric, EdgeAttributionConfig(granularity=kind))
        for kind in ("edge", "node")
    )
    assert len(by_edge.edge_scores or ()) > len(by_node.node_scores) > 100
    assert by_edge.node_scores.keys() == by_node.node_scores.keys()
    for node, score in by_node.node_scores.items():
        assert by_edge.node_scores[node] == pytest.approx(score, rel=1e-3, abs=1e-5)
    assert not any(getattr(model.cfg, f"use_{switch}") for switch in SWITCHES)
    assert_no_hooks(model)

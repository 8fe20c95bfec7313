"""What is not run again changes no logit: in every family, wherever the masked neurons are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import assert_no_hooks, is_ours
from tests.families import FAMILIES, KINDS, build, example
from tests.tiny import Tiny, build_tiny
from vlm_lens import HookedVLM, NeuronSet
from vlm_lens.hooks import Place
from vlm_lens.masking.replay import Replay, replay_below
from vlm_lens.masking.row_masks import RowMasks

MODELS: dict[str, tuple[HookedVLM, Any]] = {}
GENERATE: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}


def built(name: str) -> tuple[HookedVLM, Any]:
    """A family's model and processor."""
    if name not in MODELS:
        hf, processor = build(name)
        MODELS[name] = HookedVLM(hf, processor=processor), processor
    return MODELS[name]


def inputs_of(name: str, kind: str) -> dict[str, Tensor]:
    model, processor = built(name)
    return example(name, model.hf_model, processor, kind)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[str]:
    model, _ = built(request.param)
    yield request.param
    assert left_overs(model) == []
    assert_no_hooks(model)


def left_overs(model: HookedVLM) -> list[str]:
    """Modules with a forward of their own, or a hook of ours (Hugging Face has some too)."""
    return [
        name
        for name, module in model.hf_model.named_modules()
        if "forward" in vars(module)
        or any(is_ours(hook) for hook in module._forward_hooks.values())
        or any(is_ours(hook) for hook in module._forward_pre_hooks.values())
    ]


def places(model: HookedVLM) -> dict[str, list[str]]:
    """Hook points by the place they are at, from the end of the model to its start."""
    found: dict[str, list[str]] = {}
    text = "decoder." if model.cfg.is_encoder_decoder else ""
    found["last block"] = [f"{text}blocks.2.hook_mlp_out", f"{text}blocks.2.mlp.hook_post"]
    found["upper blocks"] = [f"{text}blocks.1.hook_resid_pre", f"{text}blocks.2.attn.hook_z"]
    found["first block"] = [f"{text}blocks.0.mlp.hook_post", f"{text}blocks.2.hook_mlp_out"]
    if model.cfg.is_encoder_decoder:
        found["text encoder"] = ["encoder.blocks.1.hook_mlp_out", "decoder.blocks.0.hook_mlp_out"]
    found["projector"] = [name for name in model.hook_dict if name.endswith("projector.hook_out")]
    if hasattr(model, "qformer"):
        found["qformer"] = ["qformer.blocks.1.mlp.hook_post"]
    tower = "audio_encoder" if hasattr(model, "audio_encoder") else "vision_encoder"
    found["middle of the tower"] = [f"{tower}.blocks.1.hook_mlp_out", "blocks.0.hook_mlp_out"]
    if model.cfg.is_encoder_decoder:
        found["middle of the tower"] = [f"{tower}.blocks.1.mlp.hook_post"]
    return found


PLACES = ["upper blocks", "first block", "text encoder", "projector", "deepstack", "qformer"]
PLACES += ["middle of the tower", "global layers"]


def ranking_of(model: HookedVLM, names: list[str], inputs: dict[str, Tensor]) -> NeuronSet:
    """Half of the neurons of some hook points, in an order of no meaning."""
    with torch.no_grad():
        _, cache = model.run_with_cache(inputs, names_filter=names, return_cache_object=False)
    sizes = {name: value.shape[2:].numel() for name, value in cache.items()}
    generator = torch.Generator().manual_seed(0)
    chosen = {n: torch.randperm(d, generator=generator)[: d // 2] for n, d in sizes.items()}
    mixed = list(NeuronSet.from_indices(chosen, sizes=sizes))
    order = torch.randperm(len(mixed), generator=generator).tolist()
    return NeuronSet([mixed[i] for i in order], sizes=sizes)


def where(model: HookedVLM, place: str) -> list[str]:
    names = places(model).get(place, [])
    if place == "global layers":
        names = [n for n in model.hook_dict if "global" in n and n.endswith("hook_mlp_out")]
    if place == "deepstack":
        names = [n for n in model.hook_dict if "deepstack" in n and n.endswith("hook_out")]
    if not names:
        pytest.skip("the family has no such place")
    return names


def doubled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([value, value]) for name, value in inputs.items()}


@torch.no_grad()
def logits(
    model: HookedVLM, inputs: Any, hooks: Any, replay: Replay | None = None, **options: Any
) -> Tensor:
    with ExitStack() as stack:
        stack.enter_context(model.hooks(hooks))
        if replay is not None:
            stack.enter_context(replay.running(**options))
        return model(inputs)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@contextmanager
def counted(modules: dict[str, nn.Module]) -> Iterator[Counter[str]]:
    """How often each of some modules is called."""
    counts: Counter[str] = Counter()

    def counting(name: str):
        def count(_module: Any, _args: Any) -> None:
            counts[name] += 1

        return count

    handles = [m.register_forward_pre_hook(counting(name)) for name, m in modules.items()]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


# In every family ----------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.filterwarnings("ignore::vlm_lens.hooked_root.HookNeverFiredWarning")
@pytest.mark.parametrize("place", PLACES)
def test_logits_are_those_of_plain_runs(family: str, place: str):
    model, _ = built(family)
    names = where(model, place)
    ranking = ranking_of(model, names, inputs_of(family, "image"))
    masks, few, many = RowMasks(ranking), 3, len(ranking)
    hooks, together = {k: masks.hooks([k]) for k in (few, many)}, masks.hooks([few, many])
    in_text = place.endswith(("block", "blocks", "text encoder"))
    for kind in sorted({"text" if in_text else "image", "batch"} & set(KINDS[family])):
        inputs = inputs_of(family, kind)
        plain = {k: logits(model, inputs, hooks[k]) for k in (few, many)}
        replay = replay_below(model, names)
        # The first run records, and is not changed by that; the second does not run everything.
        for k in (many, few):
            assert torch.equal(logits(model, inputs, hooks[k], replay), plain[k]), kind
        both = logits(model, doubled(inputs), together, replay, copies=2)
        assert_close(both, torch.cat([plain[few], plain[many]]))
        # Recorded from two copies, returned for one.
        replay = replay_below(model, names)
        both = logits(model, doubled(inputs), together, replay, copies=2)
        assert_close(both, torch.cat([plain[few], plain[many]]))
        assert_close(logits(model, inputs, hooks[few], replay), plain[few])


@pytest.mark.sampled
@pytest.mark.filterwarnings("ignore::vlm_lens.hooked_root.HookNeverFiredWarning")
@pytest.mark.parametrize("kind", ["batch", "text"])
@pytest.mark.parametrize("place", ["upper blocks", "projector", "qformer", "middle of the tower"])
def test_generated_tokens_are_those_of_plain_runs(family: str, place: str, kind: str):
    model, _ = built(family)
    names = where(model, place)
    if kind not in KINDS[family] or (kind == "text" and place != "upper blocks"):
        pytest.skip("no such prompt, or no neuron of that place in it")
    masks = RowMasks(ranking_of(model, names, inputs_of(family, "image")))
    inputs, replay = inputs_of(family, kind), replay_below(model, names, generating=True)
    options: Any = {**GENERATE, "return_type": "tokens"}
    for k in (9, 3):
        hooks = masks.hooks([k])
        with model.hooks(hooks):
            plain = model.generate(inputs, **options)
            with replay.running():
                assert torch.equal(model.generate(inputs, **options), plain), k


def inner(model: HookedVLM, prefix: str) -> dict[str, nn.Module]:
    """The linear layers in the blocks of a stack."""
    paths = model.architecture.parts()[prefix]
    blocks = dict(Place(model.hf_model, paths.blocks).module.named_modules(prefix=prefix or "text"))
    return {name: module for name, module in blocks.items() if isinstance(module, nn.Linear)}


def test_nothing_below_the_lowest_masked_neuron_runs_again(family: str):
    model, _ = built(family)
    inputs = inputs_of(family, "image")
    towers = [n for n in ("vision_encoder", "audio_encoder", "qformer") if hasattr(model, n)]
    linears = {name: m for tower in towers for name, m in inner(model, tower).items()}
    if not model.cfg.is_encoder_decoder:
        below = ("text.0.", "text.1.")
        linears |= {n: m for n, m in inner(model, "").items() if n.startswith(below)}
    names = where(model, "last block")
    masks = RowMasks(ranking_of(model, names, inputs))
    plain = {k: logits(model, inputs, masks.hooks([k])) for k in (1, 5)}
    replay = replay_below(model, names)
    with counted(linears) as first:
        logits(model, inputs, masks.hooks([3]), replay)
    with counted(linears) as second:
        again = logits(model, inputs, masks.hooks([5]), replay)
        both = logits(model, doubled(inputs), masks.hooks([5, 1]), replay, copies=2)
    assert torch.equal(again, plain[5])
    assert_close(both, torch.cat([plain[5], plain[1]]))
    assert set(first.values()) == {1}
    assert len(first) > 3
    assert not second


def test_towers_do_not_run_again_in_generation(family: str):
    model, _ = built(family)
    inputs = inputs_of(family, "image")
    towers = [n for n in ("vision_encoder", "audio_encoder", "qformer") if hasattr(model, n)]
    linears = {name: m for tower in towers for name, m in inner(model, tower).items()}
    names = where(model, "first block")
    masks = RowMasks(ranking_of(model, names, inputs))
    replay = replay_below(model, names, generating=True)
    for expected in ({1}, set()):
        with counted(linears) as counts, model.hooks(masks.hooks([3])), replay.running():
            model.generate(inputs, **GENERATE)
        assert set(counts.values()) == expected


def test_blocks_of_a_tower_below_the_lowest_masked_neuron_do_not_run_again(family: str):
    model, _ = built(family)
    inputs, names = inputs_of(family, "image"), where(model, "middle of the tower")
    tower = names[0].partition(".")[0]
    linears = inner(model, tower)
    masks = RowMasks(ranking_of(model, names, inputs))
    replay = replay_below(model, names)
    logits(model, inputs, masks.hooks([3]), replay)
    with counted(linears) as counts:
        logits(model, inputs, masks.hooks([5]), replay)
    assert {name.split(".")[1] for name in counts} == {"1", "2"}


# Traps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [[-2, -3], [1, -1], -1])
@pytest.mark.parametrize("name", ["blocks.1.mlp.hook_post", "vision_encoder.blocks.1.hook_mlp_out"])
def test_layers_that_the_projector_reads_beside_the_last_one(layers: Any, name: str):
    tiny = build_tiny("clip-llama", vision_feature_layer=layers)
    ranking = NeuronSet.from_indices({name: range(20)}, sizes={name: 64 if "post" in name else 32})
    masks, inputs = RowMasks(ranking), tiny.inputs("batch")
    plain = [logits(tiny.model, inputs, masks.hooks([k])) for k in (5, 20)]
    replay = replay_below(tiny.model, [name])
    for k, expected in ((20, plain[1]), (5, plain[0]), (20, plain[1])):
        assert torch.equal(logits(tiny.model, inputs, masks.hooks([k]), replay), expected)
    both = logits(tiny.model, doubled(dict(inputs)), masks.hooks([5, 20]), replay, copies=2)
    assert_close(both, torch.cat(plain))


def names_and_masks(model: HookedVLM, name: str) -> tuple[list[str], RowMasks]:
    return [name], RowMasks(NeuronSet.from_indices({name: range(9)}, sizes={name: 32}))


def test_what_was_recorded_is_not_changed_by_who_writes_in_place(llava: Tiny):
    """Hugging Face may add to a residual stream in place, and so may a hook."""
    name = "blocks.1.hook_mlp_out"
    names, masks = names_and_masks(llava.model, name)
    inputs = llava.inputs("image")
    plain = logits(llava.model, inputs, masks.hooks([9]))
    block = llava.hf.model.language_model.layers[1]
    handle = block.register_forward_pre_hook(lambda _module, args: args[0].add_(1))
    changed = logits(llava.model, inputs, masks.hooks([9]))
    replay = replay_below(llava.model, names)
    try:
        for _ in range(3):
            assert torch.equal(logits(llava.model, inputs, masks.hooks([9]), replay), changed)
    finally:
        handle.remove()
    assert torch.equal(logits(llava.model, inputs, masks.hooks([9]), replay), plain)


def test_an_exception_leaves_nothing_behind_and_the_next_run_records_anew(llava: Tiny):
    names, masks = names_and_masks(llava.model, "blocks.2.hook_mlp_out")
    inputs, other = llava.inputs("image"), llava.inputs("batch")
    plain, plain_other = (logits(llava.model, i, masks.hooks([9])) for i in (inputs, other))
    replay = replay_below(llava.model, names)

    def fail(_tensor: Any, hook: Any) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    late = [*masks.hooks([9]), ("blocks.2.hook_resid_post", fail)]
    with pytest.raises(KeyboardInterrupt):  # while recording another batch
        logits(llava.model, other, late, replay)
    assert left_overs(llava.model) == []
    for _ in range(2):
        assert torch.equal(logits(llava.model, inputs, masks.hooks([9]), replay), plain)
    with pytest.raises(KeyboardInterrupt):  # while replaying
        logits(llava.model, inputs, late, replay)
    assert left_overs(llava.model) == []
    assert torch.equal(logits(llava.model, inputs, masks.hooks([9]), replay), plain)
    assert torch.equal(logits(llava.model, other, masks.hooks([9])), plain_other)


def test_an_interruption_before_the_projector_has_run_is_no_run(llava: Tiny):
    names, masks = names_and_masks(llava.model, "blocks.2.hook_mlp_out")
    inputs = llava.inputs("image")
    plain = logits(llava.model, inputs, masks.hooks([9]))
    replay = replay_below(llava.model, names)

    def fail(_tensor: Any, hook: Any) -> None:  # noqa: ARG001
        raise RuntimeError

    early = [("vision_encoder.blocks.1.hook_resid_post", fail)]
    with pytest.raises(RuntimeError):
        logits(llava.model, inputs, early, replay)
    for _ in range(2):
        assert torch.equal(logits(llava.model, inputs, masks.hooks([9]), replay), plain)


def test_a_forward_that_someone_else_put_in_place_is_there_again_afterwards(llava: Tiny):
    """As accelerate does in a model that is spread over devices."""
    names, masks = names_and_masks(llava.model, "blocks.2.hook_mlp_out")
    inputs, block = llava.inputs("image"), llava.hf.model.language_model.layers[1]
    plain = logits(llava.model, inputs, masks.hooks([9]))
    theirs = block.forward
    block.forward = theirs
    replay = replay_below(llava.model, names)
    try:
        for _ in range(2):
            assert torch.equal(logits(llava.model, inputs, masks.hooks([9]), replay), plain)
            assert vars(block)["forward"] is theirs
    finally:
        del block.forward


def test_a_module_that_runs_twice_in_a_forward_is_refused():
    layer = nn.Linear(2, 2)
    replay = Replay(kept=[layer], skipped=[])
    refused = pytest.raises(RuntimeError, match="Linear runs more than once.*reuse=False")
    with refused, replay.running():
        layer(layer(torch.ones(1, 2)))
    assert not layer._forward_hooks


def test_skipped_modules_run_where_nothing_kept_comes_after_them():
    """Mllama leaves out its cross-attention blocks, the kept one among them, without a picture."""
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    replay = Replay(kept=[second], skipped=[first])
    for value in (1.0, 2.0):
        with replay.running():
            given = torch.full((1, 2), value)
            assert torch.equal(first(given), nn.functional.linear(given, first.weight, first.bias))

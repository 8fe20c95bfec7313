"""Interventions on a real model, against plain PyTorch hooks and overwritten weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.conftest import assert_no_hooks
from tests.tiny import Tiny
from vlm_lens import ActivationCache, NeuronSet
from vlm_lens.hooks import HookNameError
from vlm_lens.inputs import Inputs

LANGUAGE = "blocks.1.mlp.hook_post"
VISION = "vision_encoder.blocks.0.mlp.hook_post"
PROJECTOR = "projector.mlp.hook_post"
READERS = {  # the linear layer that reads the neurons
    LANGUAGE: "model.language_model.layers.1.mlp.down_proj",
    VISION: "model.vision_tower.encoder.layers.0.mlp.fc2",
    PROJECTOR: "model.multi_modal_projector.linear_2",
}
CHOSEN = [5, 0, 30, 17]

INTERVENTIONS = {
    "zero": lambda neurons, cache: neurons.ablate(),
    "value": lambda neurons, cache: neurons.ablate(1.5),
    "mean": lambda neurons, cache: neurons.ablate("mean", reference=cache),
    "min": lambda neurons, cache: neurons.ablate("min", reference=cache),
    "scale": lambda neurons, cache: neurons.scale(-3),
    "clamp": lambda neurons, cache: neurons.clamp(-0.05, 0.1),
}


def one_value(kind: str, old: float, reference: list[float]) -> float:
    """What an intervention makes of one activation, given the neuron's reference activations."""
    return {
        "zero": 0.0,
        "value": 1.5,
        "mean": sum(reference) / len(reference),
        "min": min(reference),
        "scale": -3 * old,
        "clamp": min(max(old, -0.05), 0.1),
    }[kind]


def slowly(tiny: Tiny, inputs: Inputs, name: str, change: Callable[[float, int], float]) -> Tensor:
    """Logits where a plain PyTorch hook changes the chosen activations one by one."""

    def hook(module, args):
        changed = args[0].clone()
        for row in changed.view(-1, changed.shape[-1]):
            for index in CHOSEN:
                row[index] = change(float(row[index]), index)
        return (changed,)

    handle = tiny.hf.get_submodule(READERS[name]).register_forward_pre_hook(hook)
    try:
        return tiny.hf(**inputs).logits
    finally:
        handle.remove()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def reference(llava: Tiny) -> ActivationCache:
    return llava.model.run_with_cache(llava.inputs("images"))[1]


def neurons_at(*names: str) -> NeuronSet:
    return NeuronSet.from_indices(dict.fromkeys(names, CHOSEN))


@pytest.mark.parametrize("kind", INTERVENTIONS)
@pytest.mark.parametrize("name", READERS)
def test_logits_are_those_of_a_slow_reference(llava: Tiny, reference, name: str, kind: str):
    inputs = llava.inputs("batch")
    values = {index: reference[name][..., index].flatten().tolist() for index in CHOSEN}
    expected = slowly(llava, inputs, name, lambda old, i: one_value(kind, old, values[i]))
    with llava.model.hooks(fwd_hooks=INTERVENTIONS[kind](neurons_at(name), reference)):
        edited = llava.model(inputs)
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(edited, llava.model(inputs), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("factor", [0, -3])
def test_ablating_and_scaling_is_like_changing_the_weights_that_read(llava: Tiny, factor: int):
    changed = copy.deepcopy(llava.hf)
    for path in READERS.values():
        changed.get_submodule(path).weight[:, CHOSEN] *= factor
    neurons, inputs = neurons_at(*READERS), llava.inputs("images")
    hooks = neurons.scale(factor) if factor else neurons.ablate()
    with llava.model.hooks(fwd_hooks=hooks):
        edited = llava.model(inputs)
    torch.testing.assert_close(edited, changed(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["image", "images", "batch"])
def test_a_mask_of_image_positions_touches_these_only(llava: Tiny, kind: str):
    inputs, model = llava.inputs(kind), llava.model
    image = inputs.positions_mask("image")
    _, clean = model.run_with_cache(inputs)
    with model.hooks(fwd_hooks=neurons_at(LANGUAGE).ablate(where=image)):
        _, cache = model.run_with_cache(inputs, names_filter=LANGUAGE)
    expected = clean[LANGUAGE].clone()
    for batch, pos in image.nonzero().tolist():
        expected[batch, pos, CHOSEN] = 0
    assert torch.equal(cache[LANGUAGE], expected)
    assert not torch.equal(expected, clean[LANGUAGE])


def test_a_mask_of_patches_touches_these_only(llava: Tiny):
    inputs, model = llava.inputs("images"), llava.model
    patches = torch.ones(2, 17, dtype=torch.bool)
    patches[:, 0] = patches[1, 9:] = False
    _, clean = model.run_with_cache(inputs, names_filter=VISION)
    with model.hooks(fwd_hooks=neurons_at(VISION).ablate(2, where=patches)):
        _, cache = model.run_with_cache(inputs, names_filter=VISION)
    expected = clean[VISION].clone()
    expected[..., CHOSEN] = expected[..., CHOSEN].masked_fill(patches[..., None], 2)
    assert torch.equal(cache[VISION], expected)


@pytest.mark.parametrize("generated", [False, True])
@pytest.mark.parametrize("kind", ["image", "batch"])
def test_generated_positions_are_touched_only_if_asked_for(llava: Tiny, kind: str, generated: bool):
    inputs, model = llava.inputs(kind), llava.model
    image, n_new = inputs.positions_mask("image"), 5
    hooks = neurons_at(LANGUAGE).ablate(where=image, generated=generated)
    with model.hooks(fwd_hooks=hooks):
        tokens, cache = model.generate_with_cache(
            inputs, names_filter=LANGUAGE, max_new_tokens=n_new, min_new_tokens=n_new
        )
    touched = torch.cat([image, torch.full((len(tokens), n_new), generated)], dim=1)
    whole = inputs.extend(tokens)
    real = whole.attention_mask.bool()  # activations of padding are zero anyway
    assert (cache[LANGUAGE][..., CHOSEN] == 0).all(-1)[real].equal(touched[real])
    with model.hooks(fwd_hooks=neurons_at(LANGUAGE).ablate(where=touched)):
        _, replay = model.run_with_cache(whole, names_filter=LANGUAGE)
    torch.testing.assert_close(cache[LANGUAGE][real], replay[LANGUAGE][real], rtol=1e-3, atol=1e-3)


def test_the_encoder_and_the_projector_are_edited_while_generating(llava: Tiny):
    inputs, model = llava.inputs("image"), llava.model
    with model.hooks(fwd_hooks=neurons_at(VISION, PROJECTOR).ablate()):
        tokens, cache = model.generate_with_cache(
            inputs, names_filter=[VISION, PROJECTOR, "blocks.0.hook_resid_pre"], max_new_tokens=2
        )
        _, replay = model.run_with_cache(inputs.extend(tokens))
    assert not cache[VISION][..., CHOSEN].any()
    assert not cache[PROJECTOR][..., CHOSEN].any()
    for name in cache:
        torch.testing.assert_close(cache[name], replay[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", READERS)
def test_a_neuron_that_does_not_exist_is_named_and_leaves_no_hook(llava: Tiny, name: str):
    inputs, model = llava.inputs("image"), llava.model
    clean = model(inputs)
    hooks = neurons_at(*READERS).ablate() + NeuronSet.from_indices({name: [99]}).ablate()
    with pytest.raises(IndexError, match=rf"neuron {name}\[99\] does not exist"):
        model.run_with_hooks(inputs, fwd_hooks=hooks)
    assert_no_hooks(model)
    assert torch.equal(model(inputs), clean)


PROJECTIONS = {"hook_q": "q_proj", "hook_k": "k_proj", "hook_v": "v_proj"}


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("site", PROJECTIONS)
def test_ablating_a_channel_of_a_head_is_zeroing_that_row_of_the_projection(
    tiny: Tiny, site: str, head: int
):
    inputs, channel = tiny.inputs("image"), head * tiny.model.cfg.d_head + 3
    changed = copy.deepcopy(tiny.hf)
    projection = changed.model.language_model.layers[1].self_attn.get_submodule(PROJECTIONS[site])
    projection.weight[channel] = 0
    if projection.bias is not None:
        projection.bias[channel] = 0
    neurons = NeuronSet.from_indices({f"blocks.1.attn.{site}": [channel]})
    edited = tiny.model.run_with_hooks(inputs, fwd_hooks=neurons.ablate())
    torch.testing.assert_close(edited, changed(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(edited, tiny.model(inputs), rtol=1e-4, atol=1e-4)


def test_ablating_a_channel_of_z_is_zeroing_that_column_of_the_output_projection(tiny: Tiny):
    inputs, channels = tiny.inputs("image"), [3 * tiny.model.cfg.d_head + 5, 2]
    changed = copy.deepcopy(tiny.hf)
    changed.model.language_model.layers[1].self_attn.o_proj.weight[:, channels] = 0
    neurons = NeuronSet.from_indices({"blocks.1.attn.hook_z": channels})
    edited = tiny.model.run_with_hooks(inputs, fwd_hooks=neurons.ablate())
    torch.testing.assert_close(edited, changed(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(edited, tiny.model(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("generated", [False, True])
def test_channels_of_heads_are_edited_while_generating(llava: Tiny, generated: bool):
    inputs, model, name = llava.inputs("image"), llava.model, "blocks.0.attn.hook_v"
    where = inputs.positions_mask("image")
    hooks = NeuronSet.from_indices({name: [9]}).ablate(where=where, generated=generated)
    with model.hooks(fwd_hooks=hooks):
        _, cache = model.generate_with_cache(
            inputs, names_filter=name, max_new_tokens=3, min_new_tokens=3
        )
    touched = torch.cat([where, torch.full((1, 3), generated)], dim=1)
    assert (cache[name][..., 1, 1] == 0).equal(touched)


@pytest.mark.parametrize("without_batch", [False, True])
def test_sizes_and_mean_ablation_count_the_channels_of_all_heads(tiny: Tiny, without_batch: bool):
    names = ["blocks.*.attn.*", "blocks.*.hook_attn_out", "vision_encoder.blocks.*.attn.hook_q"]
    _, cache = tiny.model.run_with_cache(
        tiny.inputs("image"), names_filter=names, remove_batch_dim=without_batch
    )
    hf_attention = tiny.hf.model.language_model.layers[0].self_attn
    for site, path in PROJECTIONS.items():
        name = f"blocks.0.attn.{site}"
        size = hf_attention.get_submodule(path).out_features
        assert cache.sizes[name] == size
        neurons = NeuronSet.from_indices({name: [size - 1]})
        neurons.check(cache.sizes)
        [(_, hook)] = neurons.ablate("mean", reference=cache)
        edited = hook(torch.zeros(1, 1, size // 8, 8), hook=None)
        torch.testing.assert_close(edited[0, 0, -1, -1], cache[name][..., -1, -1].mean())
    assert cache.sizes["vision_encoder.blocks.0.attn.hook_q"] == 32
    assert cache.sizes["blocks.0.hook_attn_out"] == 32
    assert not any("pattern" in name or "scores" in name for name in cache.sizes)
    values = "blocks.0.attn.hook_v"
    per_head = NeuronSet.from_indices({values: [1]}, sizes={values: 8})
    with pytest.raises(ValueError, match=r"come from another model"):
        tiny.model.run_with_hooks(tiny.inputs("text"), fwd_hooks=per_head.ablate())


def test_a_pattern_in_a_model_has_no_neurons(llava: Tiny):
    for site in ("attn.hook_pattern", "attn.hook_attn_scores"):
        neurons = NeuronSet.from_indices({f"blocks.0.{site}": [0]})
        with pytest.raises(ValueError, match="has no neurons"):
            llava.model.run_with_hooks(llava.inputs("text"), fwd_hooks=neurons.scale(2))


def test_a_cache_tells_the_sizes_of_a_model(llava: Tiny, reference: ActivationCache):
    sizes = {name: value.shape[-1] for name, value in reference.items()}
    assert (sizes[LANGUAGE], sizes[VISION], sizes[PROJECTOR]) == (64, 48, 32)
    neurons = neurons_at(*READERS)
    neurons.check(sizes)
    assert neurons.sample_control(sizes).isdisjoint(neurons)
    with pytest.raises(IndexError, match=r"projector.mlp.hook_post\[32\] .* 32 neurons, 0 to 31"):
        NeuronSet.from_indices({PROJECTOR: [32]}).check(sizes)
    with pytest.raises(HookNameError, match="Nearest: .*blocks.2.mlp.hook_post"):
        NeuronSet.from_indices({"blocks.3.mlp.hook_post": [1]}).check(sizes)

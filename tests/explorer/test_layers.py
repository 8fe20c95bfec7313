"""What a layer holds equals the cache's numbers; effects equal what a lead really loses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.conftest import assert_no_hooks
from tests.explorer.conftest import requests_of
from tests.tiny import Tiny
from vlm_lens.explorer.layers import KEPT
from vlm_lens.explorer.requests import Requests
from vlm_lens.neurons import NeuronSet

FAMILIES = ["llava_next", "idefics3", "qwen2_5_vl", "instructblip-llama", "blip2-t5"]


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_the_caches(of_family: Callable[[str], Requests], family: str) -> None:
    requests = of_family(family)
    layers, subject = requests.layers, requests.subject
    ends = ("mlp.hook_post", "hook_resid_post", "hook_out")
    names = [name for name in layers.sizes if name.endswith(ends)]
    with torch.no_grad():
        _, cache = subject.model.run_with_cache(subject.arguments, names_filter=names)
    for name in names:
        layer, expected = layers[name], cache[name].flatten(0, 1)
        chosen = expected[layer.space.rows.tolist()].numpy()
        np.testing.assert_allclose(layer.activations, chosen, rtol=1e-5, atol=1e-6)
    assert_no_hooks(subject.model)


def test_activations_are_bit_identical_to_the_caches(asked: Requests) -> None:
    name = "blocks.1.mlp.hook_post"
    _, cache = asked.subject.model.run_with_cache(asked.subject.arguments, names_filter=name)
    np.testing.assert_array_equal(asked.layers[name].activations, cache[name][0].detach().numpy())


def test_summaries_leave_special_tokens_out(asked: Requests) -> None:
    layer = asked.layers["blocks.1.mlp.hook_post"]
    token_map, values = asked.subject.token_map, layer.activations
    image, text = values[token_map.positions("image")], values[token_map.positions("text")]
    both = np.concatenate([image, text])
    assert token_map.positions("special")
    np.testing.assert_array_equal(layer.largest, both.max(0))
    np.testing.assert_array_equal(layer.limit, np.abs(both).max(0))
    np.testing.assert_allclose(layer.image, image.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer.text, text.mean(0), rtol=1e-5, atol=1e-7)
    preference = (image.mean(0) - text.mean(0)) / both.std(0)
    np.testing.assert_allclose(layer.selectivity, preference, rtol=1e-3, atol=1e-5)


def test_where_there_is_no_text_there_is_no_selectivity(asked: Requests) -> None:
    layer = asked.layers["vision_encoder.blocks.0.mlp.hook_post"]
    assert np.isnan(layer.selectivity).all()
    found, buffers = asked({"kind": "layer", "name": "vision_encoder.blocks.0.mlp.hook_post"})
    assert found["arrays"] == ["largest", "image", "effect"]
    assert len(buffers) == 3


@pytest.mark.parametrize(
    "name",
    ["blocks.2.mlp.hook_post", "vision_encoder.blocks.0.mlp.hook_post", "projector.hook_out"],
)
def test_effects_are_what_a_small_change_does_to_the_lead(asked: Requests, name: str) -> None:
    model, subject = asked.subject.model, asked.subject
    effect = asked.layers[name].effect
    assert effect is not None
    ids = subject.answer_tokens.tolist()
    best = int(np.abs(effect).argmax())
    share = 1e-2

    def lead() -> float:
        logits = model(subject.arguments)[0, subject.n_before - 1 : -1].double()
        each = [
            row[i] - row[[k for k in range(len(row)) if k != i]].max()
            for row, i in zip(logits, ids, strict=True)
        ]
        return float(sum(each))

    with torch.no_grad():
        clean = lead()
        neuron = NeuronSet.from_indices({name: [best]})
        with model.hooks(fwd_hooks=neuron.scale(1 - share)):
            without = lead()
    assert (clean - without) / share == pytest.approx(effect[best], rel=0.1)


def test_a_layer_that_nothing_reads_has_no_effect(asked: Requests) -> None:
    last = "vision_encoder.blocks.2.mlp.hook_post"  # the projector reads the one before
    assert not np.any(asked.layers[last].effect)
    assert np.any(asked.layers["vision_encoder.blocks.1.mlp.hook_post"].effect)


def test_reading_a_layer_changes_nothing_about_the_model(llava: Tiny) -> None:
    frozen = next(llava.model.parameters())
    frozen.requires_grad_(False)
    try:
        before = [parameter.requires_grad for parameter in llava.model.parameters()]
        requests = requests_of(llava.model, answer="red")
        _ = requests.layers["blocks.0.mlp.hook_post"].effect
        assert [parameter.requires_grad for parameter in llava.model.parameters()] == before
        assert all(parameter.grad is None for parameter in llava.model.parameters())
    finally:
        frozen.requires_grad_(True)


def test_without_effects_there_is_no_backward(llava: Tiny) -> None:
    requests = requests_of(llava.model, answer="red", effects=False)
    assert requests.layers["blocks.0.mlp.hook_post"].effect is None
    found, _ = requests({"kind": "layer", "name": "blocks.0.mlp.hook_post"})
    assert "effect" not in found["arrays"]
    assert requests.first().name == "blocks.1.mlp.hook_post"


def test_only_a_few_layers_are_kept_and_each_is_read_once(
    llava: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(llava.model, answer="red")
    names = list(requests.layers.sizes)[: KEPT + 1]
    read: list[str] = []
    real = type(requests.layers)._read
    monkeypatch.setattr(
        type(requests.layers), "_read", lambda self, name: read.append(name) or real(self, name)
    )
    for name in [*names, names[-1], names[1], names[0]]:
        _ = requests.layers[name]
    assert read == [*names, names[0]]


def test_names_are_chosen_and_unknown_ones_refused(llava: Tiny) -> None:
    layers = requests_of(llava.model, answer="red", names="blocks.*.mlp.hook_post").layers
    assert list(layers.sizes.values()) == [64] * 3
    with pytest.raises(KeyError, match=r"no hook point 'blocks.0.mlp.hook_pre' to explore"):
        _ = layers["blocks.0.mlp.hook_pre"]


def test_heads_and_patterns_are_not_offered(asked: Requests) -> None:
    assert not [name for name in asked.layers.sizes if name.endswith(("hook_z", "hook_pattern"))]

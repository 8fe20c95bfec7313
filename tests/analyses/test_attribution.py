"""First-order effects against small changes, against real ablations, and where they are exact."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import Tiny
from vlm_lens import NeuronSet
from vlm_lens.analyses import direct_effect, first_order_effect
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks.names import HookNameError

SITES = [
    "vision_encoder.blocks.0.mlp.hook_post",
    "projector.mlp.hook_post",
    "blocks.0.mlp.hook_post",
    "blocks.2.mlp.hook_post",
]


def lost_logit(tiny: Tiny, name: str, index: int, *, factor: float, token: int) -> float:
    """What the token's logit loses when one neuron is multiplied by a factor everywhere."""
    inputs = tiny.inputs("image")
    scale = NeuronSet.from_indices({name: [index]}).scale(factor)
    with torch.no_grad():
        clean, changed = tiny.model(inputs), tiny.model.run_with_hooks(inputs, fwd_hooks=scale)
    return float((clean - changed)[0, -1, token])


@pytest.mark.parametrize("name", SITES)
def test_is_the_slope_of_the_logit(llava: Tiny, name: str) -> None:
    effect = first_order_effect(llava.model, llava.inputs("image"), token=7)
    for index in (0, 5, 31):
        down, up = (lost_logit(llava, name, index, factor=f, token=7) for f in (0.98, 1.02))
        slope = (down - up) / 0.04
        assert float(effect.scores[name][index]) == pytest.approx(slope, rel=0.01, abs=1e-4)


@pytest.mark.sampled
@pytest.mark.parametrize("name", SITES)
def test_follows_what_zeroing_neurons_one_by_one_does(llava: Tiny, name: str) -> None:
    effect = first_order_effect(llava.model, llava.inputs("image"), token=7)
    lost = torch.tensor(
        [
            lost_logit(llava, name, index, factor=0.0, token=7)
            for index in range(len(effect.scores[name]))
        ]
    )
    correlation = torch.corrcoef(torch.stack([effect.scores[name], lost]))[0, 1]
    assert correlation > 0.8


def test_is_the_direct_effect_where_only_the_direct_path_is_left(llava: Tiny) -> None:
    """In the last layer, with the final norm's scale held, the logit is linear in the neurons."""
    inputs, name = llava.inputs("image"), "blocks.2.mlp.hook_post"
    hold = ("ln_final.hook_scale", lambda scale, hook: scale.detach().clone())  # noqa: ARG005
    with llava.model.hooks(fwd_hooks=[hold]):
        effect = first_order_effect(llava.model, inputs, sites=name)
    expected = direct_effect(llava.model, inputs)
    assert (effect.token, effect.position) == (expected.token, expected.position)
    torch.testing.assert_close(effect.scores[name], expected.scores[name])


def test_covers_every_component(tiny: Tiny) -> None:
    inputs = tiny.inputs("image")
    effect = first_order_effect(tiny.model, inputs)
    assert {name for name in tiny.model.hook_dict if name.endswith("mlp.hook_post")} == set(
        effect.scores
    )
    assert effect.logit == pytest.approx(tiny.model(inputs)[0, -1].max().item(), rel=1e-4)
    # The projector reads the second to last layer: the last one does nothing.
    assert not effect.scores["vision_encoder.blocks.2.mlp.hook_post"].any()
    assert all(
        scores.any() for name, scores in effect.scores.items() if "encoder.blocks.2" not in name
    )
    table = effect.to_dataframe(3)
    assert table["first_order_effect"].is_monotonic_decreasing


def test_needs_no_trainable_parameters_and_leaves_no_gradients(llava: Tiny) -> None:
    inputs = llava.inputs("image")
    expected = first_order_effect(llava.model, inputs)
    assert all(parameter.grad is None for parameter in llava.hf.parameters())
    llava.hf.requires_grad_(False)
    try:
        with torch.no_grad():
            frozen = first_order_effect(llava.model, inputs)
    finally:
        llava.hf.requires_grad_(True)
    for name, scores in expected.scores.items():
        torch.testing.assert_close(frozen.scores[name], scores)
        assert not scores.requires_grad


def test_of_text_alone_covers_the_language_model(llava: Tiny) -> None:
    effect = first_order_effect(llava.model, llava.inputs("text"), sites="blocks.*.mlp.hook_post")
    assert len(effect.scores) == 3
    with pytest.warns(HookNeverFiredWarning):
        everything = first_order_effect(llava.model, llava.inputs("text"))
    assert set(everything.scores) == set(effect.scores)


def test_refuses_what_it_cannot_explain(llava: Tiny) -> None:
    with pytest.raises(ValueError, match="expected one prompt, got a batch of 3"):
        first_order_effect(llava.model, llava.inputs("batch"))
    with pytest.raises(HookNameError):
        first_order_effect(llava.model, llava.inputs("image"), sites="blocks.*.mlp.hook_pots")
    with pytest.raises(IndexError):
        first_order_effect(llava.model, llava.inputs("image"), position=99)

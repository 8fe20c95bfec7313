"""Neurons at sites of heads, against loops that are slow and obvious."""

from __future__ import annotations

import pytest
import torch

from tests.neurons.test_interventions import PARTS, POST, REFERENCE, activations, slowly
from vlm_lens.neurons import NeuronSet

VALUES = "blocks.0.attn.hook_v"
HEADS = NeuronSet.from_indices({VALUES: [4, 1]})  # channel 0 of head 2, channel 1 of head 0
BY_HEAD = {VALUES: REFERENCE[POST].unflatten(-1, (3, 2))}

HEAD_INTERVENTIONS = {
    "zero": lambda **kw: HEADS.ablate(**kw),
    "mean": lambda **kw: HEADS.ablate("mean", reference=BY_HEAD, **kw),
    "min": lambda **kw: HEADS.ablate("min", reference=BY_HEAD, **kw),
    "scale": lambda **kw: HEADS.scale(-3, **kw),
    "clamp": lambda **kw: HEADS.clamp(-0.2, 0.3, **kw),
}


@pytest.mark.parametrize("where", [None, PARTS], ids=["everywhere", "somewhere"])
@pytest.mark.parametrize("kind", HEAD_INTERVENTIONS)
def test_channels_of_heads_are_numbered_one_head_after_the_other(kind, where):
    tensor = activations(2, 4, 6)
    by_head = torch.stack([tensor[..., :2], tensor[..., 2:4], tensor[..., 4:]], dim=2)
    before = by_head.clone()
    [(_, hook)] = HEAD_INTERVENTIONS[kind](where=where)
    edited = hook(by_head, hook=None)
    expected = slowly(kind, tensor, where)
    for head in range(3):
        torch.testing.assert_close(edited[:, :, head], expected[..., 2 * head : 2 * head + 2])
    assert torch.equal(by_head, before)


def test_activations_of_heads_need_not_be_contiguous():
    tensor = activations(2, 3, 4, 2).transpose(1, 2)  # as attention functions return them
    [(_, hook)] = HEADS.ablate()
    edited = hook(tensor, hook=None)
    assert not edited[:, :, 2, 0].any()
    assert not edited[:, :, 0, 1].any()
    assert torch.equal(edited[:, :, 1], tensor[:, :, 1])


def test_the_size_of_a_site_of_heads_counts_all_heads():
    with pytest.raises(IndexError, match=r"neuron blocks.0.attn.hook_v\[6\] .* 6 neurons, 0 to 5"):
        NeuronSet.from_indices({VALUES: [6]}).ablate("mean", reference=BY_HEAD)
    sized = NeuronSet.from_indices({VALUES: [1]}, sizes={VALUES: 6})
    [(_, hook)] = sized.ablate()
    assert hook(torch.ones(1, 1, 3, 2), hook=None).flatten().tolist() == [1, 0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="6 neurons, .*another model"):
        hook(torch.ones(1, 1, 4, 2), hook=None)


def test_wanted_values_of_heads_can_come_flat_or_by_head():
    for values in (torch.arange(6.0), torch.arange(6.0).view(3, 2)):
        [(_, hook)] = HEADS.ablate("mean", reference={VALUES: values})
        edited = hook(torch.zeros(1, 1, 3, 2), hook=None)
        assert edited.flatten().tolist() == [0, 1, 0, 0, 4, 0]


@pytest.mark.parametrize("shape", [(2, 4, 6), (4, 6), (1, 2, 4, 3, 2)])
def test_sites_of_heads_need_heads(shape):
    [(_, hook)] = NeuronSet.from_indices({VALUES: [1]}).ablate()
    with pytest.raises(ValueError, match=r"activations \[batch, pos, head, d_head\]"):
        hook(torch.zeros(shape), hook=None)


@pytest.mark.parametrize("site", ["attn.hook_pattern", "cross_attn.hook_attn_scores"])
def test_scores_and_patterns_have_no_neurons(site):
    neurons = NeuronSet.from_indices({f"blocks.0.{site}": [1]})
    with pytest.raises(ValueError, match=rf"{site}' has no neurons: .*head, query, key"):
        neurons.ablate()
    with pytest.raises(ValueError, match="has no neurons"):
        neurons.ablate("mean", reference={f"blocks.0.{site}": torch.rand(1, 2, 4, 4)})

"""Nested masks in copies of a batch, against a loop over copies, rows, positions and neurons."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.tiny import Tiny
from vlm_lens import NeuronSet
from vlm_lens.masking.row_masks import Fill, RowMasks
from vlm_lens.neurons.neuron import Neuron

POST, OUT, HEADS = "blocks.0.mlp.hook_post", "blocks.1.hook_mlp_out", "blocks.0.attn.hook_z"
SIZES = {POST: 6, OUT: 5, HEADS: 6}
RANKED = [(POST, 4), (OUT, 0), (HEADS, 5), (POST, 1), (HEADS, 2), (OUT, 3), (POST, 0)]
RANKING = NeuronSet([Neuron(*pair) for pair in RANKED], sizes=SIZES)
FILL = {name: torch.arange(1.0, size + 1) for name, size in SIZES.items()}
SPARED = torch.tensor([[True, False, False], [False, True, False]])  # first of each, one padded


def activations(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def slowly(
    name: str, tensor: Tensor, ks: Sequence[int], fill: Fill | None, spared: Tensor | None
) -> Tensor:
    """One number at a time."""
    out = tensor.flatten(2).clone()  # heads: one behind the other
    n_rows = len(tensor) // len(ks)
    for row in range(len(tensor)):
        copy, sample = divmod(row, n_rows)
        for neuron in list(RANKING)[: ks[copy]]:
            if neuron.name != name:
                continue
            for pos in range(tensor.shape[1]):
                if spared is None or not spared[sample, pos]:
                    out[row, pos, neuron.index] = 0 if fill is None else fill[name][neuron.index]
    return out.view(tensor.shape)


def masked(
    name: str,
    tensor: Tensor,
    ks: Sequence[int],
    *,
    fill: Fill | None = None,
    spared: Tensor | None = None,
) -> Tensor:
    """By the hook; where there is none, nothing changes."""
    spare = None if spared is None else lambda _name: spared
    hooks = dict(RowMasks(RANKING, fill=fill).hooks(ks, spare=spare))
    return hooks[name](tensor, hook=None) if name in hooks else tensor


@pytest.mark.parametrize("spared", [None, SPARED], ids=["everywhere", "spared"])
@pytest.mark.parametrize("fill", [None, FILL], ids=["zero", "values"])
@pytest.mark.parametrize(
    "ks", [[0], [1], [7], [0, 7], [3, 4, 5], [1, 2, 3, 4, 5, 6, 7], [6, 0, 3]], ids=str
)
@pytest.mark.parametrize("name", SIZES)
def test_masks_the_best_k_of_each_copy(name, ks, fill, spared):
    tail = (3, 2) if name == HEADS else (SIZES[name],)
    tensor = activations(2 * len(ks), 3, *tail)
    before = tensor.clone()
    found = masked(name, tensor, ks, fill=fill, spared=spared)
    assert torch.equal(found, slowly(name, tensor, ks, fill, spared))
    assert torch.equal(tensor, before)


def test_only_hook_points_of_the_largest_set_have_hooks():
    masks = RowMasks(RANKING)
    assert masks.names(0) == []
    assert masks.names(1) == [POST]
    assert set(masks.names(3)) == {POST, OUT, HEADS}
    assert [name for name, _ in masks.hooks([1, 2])] == [POST, OUT]
    assert masks.hooks([0]) == []


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_masked_may_be_infinite_and_what_is_not_stays_so(value):
    tensor = torch.full((2, 3, 6), value)
    found = masked(POST, tensor, [1, 4])
    assert found[0, :, 4].tolist() == [0, 0, 0]
    assert found[1, :, [1, 4]].tolist() == [[0, 0]] * 3
    assert not found[0, :, [0, 1, 2, 3, 5]].isfinite().any()
    assert not found[1, :, [0, 2, 3, 5]].isfinite().any()
    assert torch.equal(found[0, :, 5].nan_to_num(7, 8, 9), tensor[0, :, 5].nan_to_num(7, 8, 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fill", [None, FILL], ids=["zero", "values"])
def test_the_dtype_is_kept(dtype, fill):
    tensor = activations(4, 3, 6, dtype=dtype)
    found = masked(POST, tensor, [2, 7], fill=fill)
    assert found.dtype == dtype
    assert torch.equal(found, slowly(POST, tensor, [2, 7], fill, None))


def test_activations_need_not_be_contiguous():
    heads = activations(4, 3, 5, 2).transpose(1, 2)  # as attention functions return them
    found = masked(HEADS, heads, [3, 5])
    assert torch.equal(found, slowly(HEADS, heads, [3, 5], None, None))
    every_other = activations(4, 3, 12)[..., ::2]
    assert torch.equal(
        masked(POST, every_other, [4, 7]), slowly(POST, every_other, [4, 7], None, None)
    )


def test_constants_move_to_the_activations_device():
    # The meta device stands in for an accelerator: it refuses operands from the CPU as one does.
    tensor = torch.empty(2, 3, 6, device="meta", dtype=torch.float16)
    spared = torch.zeros(1, 3, dtype=torch.bool)
    for fill in (None, FILL):
        found = masked(POST, tensor, [2, 7], fill=fill, spared=spared)
        assert (found.device.type, found.dtype, found.shape) == ("meta", torch.float16, (2, 3, 6))


def test_positions_are_spared_in_the_prompt_only():
    """While generating, the prompt comes first, then one position at a time."""
    [(_, hook)] = RowMasks(RANKING[:1]).hooks([1], spare=lambda _name: SPARED)
    prompt, step = activations(2, 3, 6), activations(2, 1, 6)
    assert torch.equal(hook(prompt, hook=None), slowly(POST, prompt, [1], None, SPARED))
    assert torch.equal(hook(step, hook=None), slowly(POST, step, [1], None, None))


def test_a_prompt_of_one_position_is_told_from_those_that_follow():
    """As a decoder's start token is."""
    [(_, hook)] = RowMasks(RANKING[:1]).hooks([1], spare=lambda _name: SPARED[:1, :1])
    step = activations(1, 1, 6)
    assert torch.equal(hook(step, hook=None), step)
    for _ in range(2):
        assert torch.equal(hook(step, hook=None), slowly(POST, step, [1], None, None))


def test_spare_is_asked_for_every_hook_point():
    asked = []
    RowMasks(RANKING).hooks([7], spare=asked.append)
    assert sorted(asked) == sorted(SIZES)


def test_a_ranking_without_sizes_and_a_fill_that_does_not_fit_are_refused():
    unsized = NeuronSet([Neuron(POST, 1)])
    with pytest.raises(ValueError, match=f"number of neurons at {POST!r}"):
        RowMasks(unsized)
    with pytest.raises(ValueError, match=f"fill has no values for {HEADS!r}"):
        RowMasks(RANKING, fill={POST: FILL[POST], OUT: FILL[OUT]})
    with pytest.raises(ValueError, match=f"6 values for {POST!r}, got shape \\(5,\\)"):
        RowMasks(RANKING, fill={**FILL, POST: torch.zeros(5)})


def test_a_hook_point_with_other_neurons_is_refused():
    with pytest.raises(ValueError, match=f"6 neurons at {POST!r}, got activations of shape"):
        masked(POST, activations(2, 3, 8), [7])


@pytest.mark.parametrize("site", ["attn.hook_z", "attn.hook_v", "mlp.hook_post", "hook_resid_pre"])
def test_in_a_model_copies_are_what_single_runs_are(llava: Tiny, site: str):
    name = f"blocks.1.{site}"
    size = 64 if site == "mlp.hook_post" else 32
    ranking = NeuronSet.from_indices({name: torch.randperm(size)[:20]}, sizes={name: size})
    masks, inputs = RowMasks(ranking), llava.inputs("batch")
    doubled = {key: torch.cat([value, value]) for key, value in inputs.items()}
    with torch.no_grad():
        together = llava.model.run_with_hooks(doubled, fwd_hooks=masks.hooks([3, 20]))
        for k, found in zip((3, 20), together.split(3), strict=True):
            alone = llava.model.run_with_hooks(inputs, fwd_hooks=ranking[:k].ablate())
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)

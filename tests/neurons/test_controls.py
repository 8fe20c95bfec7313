"""Random neurons of the same places and of similar norm."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.neurons.controls import norm_gaps, norm_matched, random_neurons

A, B = "blocks.0.hook_mlp_out", "blocks.1.mlp.hook_pre"


def names(ranking: NeuronSet) -> list[str]:
    return [neuron.name for neuron in ranking]


def mixed(n_a: int = 5, n_b: int = 12) -> NeuronSet:
    """Neurons of two hook points in turn, as long as there are some."""
    pairs = [Neuron(name, i) for i in range(12) for name, n in ((A, n_a), (B, n_b)) if i < n]
    return NeuronSet(pairs, sizes={A: 20, B: 12})


# Random -------------------------------------------------------------------------------------------


def test_each_rank_has_a_neuron_of_the_same_hook_point():
    for seed in range(5):
        drawn = random_neurons(mixed(), seed=seed, avoid="never")
        assert names(drawn) == names(mixed())
        assert drawn.sizes == mixed().sizes
        assert len(set(drawn)) == len(drawn)


def test_a_hook_point_that_is_ranked_whole_is_shuffled():
    ranking = mixed()
    drawn = random_neurons(ranking, avoid="never")
    assert drawn.filter(layer=1) == ranking.filter(layer=1)
    assert list(drawn.filter(layer=1)) != list(ranking.filter(layer=1))
    with pytest.raises(ValueError, match="more than half|at most half"):
        ranking.sample_control()


def test_seeds_give_the_same_neurons_and_others():
    state = torch.get_rng_state()
    drawn = [list(random_neurons(mixed(), seed=seed, avoid="never")) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] != drawn[3]
    assert torch.equal(torch.get_rng_state(), state)


def test_any_neuron_is_as_likely_as_any_other_at_each_rank():
    """Those of the ranking too: they are 5 of 20 here."""
    at_rank_0, overlap = Counter(), 0
    for seed in range(800):
        drawn = random_neurons(mixed(), seed=seed, avoid="never")
        at_rank_0[drawn[0].index] += 1
        overlap += len(drawn.filter(layer=0) & mixed().filter(layer=0))
    assert set(at_rank_0) == set(range(20))
    assert max(at_rank_0.values()) < 2 * 800 / 20
    assert overlap / 800 == pytest.approx(5 * 5 / 20, rel=0.1)


def test_sizes_have_to_be_known():
    ranking = NeuronSet.from_indices({A: [1], B: [2]})
    with pytest.raises(ValueError, match=rf"neurons at '{A}' is not known \(in all, 2 hook"):
        random_neurons(ranking, avoid="never")
    assert len(random_neurons(NeuronSet())) == 0


# Of similar norm ----------------------------------------------------------------------------------


def test_norms_match():
    """Norms that differ by orders of magnitude: partners are of the same one."""
    generator = torch.Generator().manual_seed(0)
    norms = {
        name: 10.0 ** torch.arange(4).repeat_interleave(50)
        * (1 + torch.rand(200, generator=generator) / 2)
        for name in (A, B)
    }
    ranking = NeuronSet.from_indices({A: [160, 3, 70, 120], B: [20, 199]})
    for seed in range(20):
        matched = norm_matched(ranking, norms, seed=seed)
        assert names(matched) == names(ranking)
        assert matched.sizes == {A: 200, B: 200}
        assert all(neuron != partner for neuron, partner in zip(ranking, matched, strict=True))
        assert max(norm_gaps(ranking, matched, norms)) < 1.5
    drawn = {tuple(norm_matched(ranking, norms, seed=seed)) for seed in range(20)}
    assert len(drawn) > 15


def test_the_nearest_one_is_taken_if_there_is_no_choice():
    norms = {A: torch.tensor([5.0, 4.0, 1.0, 1.2, 5.5])}
    ranking = NeuronSet.from_indices({A: [0, 2, 4]})
    matched = norm_matched(ranking, norms, nearest=1)
    assert [neuron.index for neuron in matched] == [4, 3, 0]  # 4 is taken, but 0 is not


def test_no_neuron_is_taken_twice_and_all_of_a_layer_may_be_ranked():
    """The last one may have nothing left but itself."""
    norms = {A: torch.ones(3)}
    ranking = NeuronSet.from_indices({A: [0, 1, 2]})
    for seed in range(10):
        matched = norm_matched(ranking, norms, seed=seed)
        assert matched == ranking
        assert [n for n, m in zip(ranking, matched, strict=True) if n == m] in ([], [ranking[2]])
    alone = NeuronSet.from_indices({B: [0]})
    assert norm_matched(alone, {B: torch.tensor([1.0])}) == alone
    assert len(norm_matched(NeuronSet(), {})) == 0


def test_what_is_critical_does_not_stand_in_for_what_is_critical():
    """Two massive channels are each other's nearest: the control would be the set itself."""
    norms = {A: torch.tensor([300.0, 250.0, 1.0, 2.0, 3.0])}
    ranking = NeuronSet.from_indices({A: [0, 1, 3]})
    assert norm_matched(ranking, norms, nearest=1)[:2] == ranking[:2]
    matched = norm_matched(ranking, norms, nearest=1, apart_from=ranking[:2])
    assert [neuron.index for neuron in matched] == [4, 3, 2]
    assert norm_gaps(ranking, matched, norms) == pytest.approx([100, 125, 2])


def test_where_most_of_a_layer_is_critical_others_come_first():
    ranking = NeuronSet.from_indices({A: [5, 4, 3, 2, 1]})
    norms = {A: torch.arange(8.0)}
    for seed in range(10):
        matched = norm_matched(ranking, norms, seed=seed, apart_from=ranking)
        assert {neuron.index for neuron in matched[:3]} == {0, 6, 7}
        assert matched[3:] <= ranking
        assert len(matched) == 5
        assert matched[3] != ranking[3]


def test_gaps_of_what_is_zero():
    norms = {A: torch.tensor([0.0, 2.0, 0.0, -2.0])}
    here = NeuronSet.from_indices({A: [0, 1, 2, 3]})
    there = NeuronSet.from_indices({A: [2, 0, 1]})
    assert norm_gaps(here, there, norms) == [1.0, math.inf, math.inf]


def test_bad_requests_are_refused():
    norms = {A: torch.ones(3)}
    with pytest.raises(ValueError, match="nearest of at least 1, got 0"):
        norm_matched(NeuronSet.from_indices({A: [0]}), norms, nearest=0)
    with pytest.raises(ValueError, match=rf"no norms for '{B}' \(in all, 1 "):
        norm_matched(NeuronSet.from_indices({A: [0], B: [0]}), norms)


@pytest.mark.parametrize("avoid", ["always", "where possible", "never"])
def test_draws_do_not_depend_on_the_order_of_hook_points(avoid):
    ranking = NeuronSet.from_indices({B: [1, 2], A: [0]}, sizes={A: 9, B: 9})
    turned = NeuronSet([ranking[2], ranking[0], ranking[1]], sizes=ranking.sizes)
    assert list(ranking) != list(turned)
    one, other = (random_neurons(some, seed=3, avoid=avoid) for some in (ranking, turned))
    assert one == other
    assert [n.name for n in other] == [n.name for n in turned]

"""Controls: random neurons of the same places, and random ones of the same norm."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_lens.neurons.choosing import Avoid, drawn_like
from vlm_lens.neurons.neuron import Neuron
from vlm_lens.neurons.neuron_set import NeuronSet

NEAREST = 8
"""From how many neurons of similar norm one is drawn; ours."""

SIMILAR_NORM = 2.0
"""Norms that differ by more than this factor are no match; ours."""


def random_neurons(
    neurons: NeuronSet,
    *,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    avoid: Avoid = "where possible",
) -> NeuronSet:
    """Random neurons, at each rank one of the hook point that the set has there.

    Args:
        neurons: What to match, rank by rank.
        seed: The same seed gives the same neurons; the global random state is not used.
        sizes: The number of neurons at each hook point; by default those that the set knows.
        avoid: Whether the set's own neurons are left out: "where possible" wherever at least half
            of a hook point is others; "always" refuses it elsewhere; "never" shuffles each hook
            point's neurons, so that own ones are drawn as often as chance has it, which can only
            make random neurons look more important, not less.

    Raises:
        ValueError: The size of a hook point is not known, or others than the set's are not enough.
        HookNameError, IndexError: The set does not fit the sizes.

    Example:
        >>> neurons = NeuronSet.from_indices({"blocks.0.hook_mlp_out": [3, 1]},
        ...                                  sizes={"blocks.0.hook_mlp_out": 4})
        >>> sorted(neuron.index for neuron in random_neurons(neurons))
        [0, 2]
    """
    if sizes is not None:
        neurons.check(sizes)
    known = neurons.sizes if sizes is None else sizes
    if unknown := [name for name in neurons.names if name not in known]:
        raise ValueError(
            f"the number of neurons at {unknown[0]!r} is not known (in all, {len(unknown)} hook "
            "points): make the set with sizes, such as NeuronSet(neurons, sizes=...)"
        )
    drawn = drawn_like(list(neurons), known, seed=seed, avoid=avoid)
    return NeuronSet(drawn, sizes=dict(known))


def norm_matched(
    ranking: NeuronSet,
    norms: Mapping[str, Float[Tensor, " d"]],
    *,
    seed: int = 0,
    nearest: int = NEAREST,
    apart_from: NeuronSet | None = None,
) -> NeuronSet:
    """Random neurons of similar norm, at each rank one of the hook point that is ranked there.

    Each is drawn from the ``nearest`` neurons whose norm is closest, of those that are neither the
    neuron itself nor taken before. Where nothing is close, such as for a massive activation, what
    is closest is taken all the same: `norm_gaps` tells. Where nothing else is left, because most of
    a layer is ranked, it may be a neuron of `apart_from`, or in the end the neuron itself.

    Args:
        ranking: What to match, rank by rank.
        norms: By hook name, the norm of each neuron, such as its mean |a|.
        seed: The same seed gives the same neurons; the global random state is not used.
        nearest: How many of similar norm to draw from; ours.
        apart_from: Neurons that are not taken as long as there are others. The critical ones belong
            here: two of them that are larger than all others would only change places.

    Returns:
        As many neurons as the ranking has.

    Raises:
        ValueError: `nearest` is less than 1, or a hook point has no norms.

    Example:
        >>> name = "blocks.0.hook_mlp_out"
        >>> ranking = NeuronSet.from_indices({name: [0]}, sizes={name: 4})
        >>> norms = {name: torch.tensor([5.0, 4.0, 0.1, 0.2])}
        >>> [str(neuron) for neuron in norm_matched(ranking, norms, nearest=1)]
        ['blocks.0.hook_mlp_out[1]']
    """
    if nearest < 1:
        raise ValueError(f"expected nearest of at least 1, got {nearest}")
    if missing := [name for name in ranking.names if name not in norms]:
        raise ValueError(
            f"there are no norms for {missing[0]!r} (in all, {len(missing)} hook points of the "
            "ranking): measure them at all of ranking.names"
        )
    generator = torch.Generator().manual_seed(seed)
    free = {name: torch.ones(len(norms[name]), dtype=torch.bool) for name in ranking.names}
    avoided = {name: torch.zeros(len(norms[name]), dtype=torch.bool) for name in ranking.names}
    for neuron in apart_from or ():
        if neuron.name in avoided:
            avoided[neuron.name][neuron.index] = True
    matched = []
    for neuron in ranking:
        values, left = norms[neuron.name], free[neuron.name]
        others = _first_of(left & ~avoided[neuron.name], left, without=neuron.index)
        distances = (values[others] - values[neuron.index]).abs()
        closest = others[distances.argsort(stable=True)][:nearest]
        chosen = int(closest[int(torch.randint(len(closest), (), generator=generator))])
        left[chosen] = False
        matched.append(Neuron(neuron.name, chosen))
    return NeuronSet(matched, sizes={name: len(norms[name]) for name in ranking.names})


def _first_of(*masks: Bool[Tensor, " d"], without: int) -> Int[Tensor, " other"]:
    """The places in the first mask that has any but one; that one if it is all that is left."""
    for mask in masks:
        places = mask.nonzero()[:, 0]
        if len(others := places[places != without]):
            return others
    return torch.tensor([without])


def norm_gaps(
    ranking: NeuronSet, matched: NeuronSet, norms: Mapping[str, Float[Tensor, " d"]]
) -> list[float]:
    """By what factor the norms of two rankings differ, rank by rank: 1 where they are the same.

    Example:
        >>> name = "blocks.0.hook_mlp_out"
        >>> norms = {name: torch.tensor([300.0, 4.0, 3.0])}
        >>> here, there = (NeuronSet.from_indices({name: [i, 2 - i]}) for i in (0, 2))
        >>> norm_gaps(here, there, norms)
        [100.0, 100.0]
    """
    pairs = zip(ranking, matched, strict=False)
    return [_gap(*(float(norms[n.name][n.index].abs()) for n in pair)) for pair in pairs]


def _gap(norm: float, other: float) -> float:
    low, high = sorted((norm, other))
    if low == high:
        return 1.0
    return high / low if low > 0 else float("inf")


def norm_notes(
    critical: NeuronSet, matched: NeuronSet, norms: Mapping[str, Float[Tensor, " d"]]
) -> list[str]:
    """What a reader must know of neurons that stand for others of the same norm."""
    notes, gaps = [], norm_gaps(critical, matched, norms)
    if alone := [rank for rank, gap in enumerate(gaps) if gap > SIMILAR_NORM]:
        worst = max(alone, key=gaps.__getitem__)
        norm, other = (float(norms[n.name][n.index]) for n in (critical[worst], matched[worst]))
        notes.append(
            f"{len(alone)} of {len(critical)} critical neurons have no match within a factor of "
            f"{SIMILAR_NORM:g}, least of all {critical[worst]}: {norm:.3g} against {other:.3g}"
        )
    if again := len(matched[: len(critical)] & critical):
        notes.append(
            f"{again} of {len(critical)} critical neurons are among their own matches, because "
            "their hook points have no others left"
        )
    return notes

"""From indices, masks and scores to neurons."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlm_lens.neurons.checks import finite_number, kind_of
from vlm_lens.neurons.neuron import Neuron, natural_order


def neurons_at(indices: Mapping[str, Any]) -> list[Neuron]:
    """The neurons at these positions, in the order given; see `NeuronSet.from_indices`."""
    neurons = []
    for name, some in indices.items():
        values = some.tolist() if hasattr(some, "tolist") else some
        if not isinstance(values, Iterable):
            raise ValueError(
                f"the indices of {name!r} must be a list or one-dimensional tensor of integers, "
                f"got {kind_of(some)}. For one neuron pass [index]."
            )
        neurons += [Neuron(name, index) for index in values]
    return neurons


def neurons_in(masks: Mapping[str, Bool[Tensor, " d"]]) -> list[Neuron]:
    """The neurons whose mask is True, by hook name and index; see `NeuronSet.from_masks`."""
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 1:
            raise ValueError(
                f"the mask of {name!r} must be a boolean tensor [d], got {kind_of(mask)}. "
                "Compare first (scores > 0.5), or use from_scores or from_indices."
            )
    names = sorted(masks, key=natural_order)
    return neurons_at({name: masks[name].nonzero()[:, 0] for name in names})


def best_neurons(
    scores: Mapping[str, Float[Tensor, " d"]],
    *,
    k: int | None,
    ratio: int | float | None,
    threshold: int | float | None,
) -> list[Neuron]:
    """The neurons with the highest scores, best first; see `NeuronSet.from_scores`."""
    names = sorted(scores, key=natural_order)  # breaks ties, as the sort below is stable
    flat = _flat_scores({name: scores[name] for name in names})
    count = _how_many(flat, {"k": k, "ratio": ratio, "threshold": threshold})
    everyone = [(name, index) for name in names for index in range(len(scores[name]))]
    best = flat.argsort(descending=True, stable=True)[:count].tolist()
    return [Neuron(*everyone[place]) for place in best]


def _flat_scores(scores: Mapping[str, Tensor]) -> Float[Tensor, " total"]:
    """All scores one after the other in float64, which holds every floating-point type exactly."""
    if not scores:
        raise ValueError("scores are empty. Pass a tensor [d] of scores for each hook name.")
    for name, values in scores.items():
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim != 1:
            raise ValueError(
                f"the scores of {name!r} must be a floating-point tensor [d], got "
                f"{kind_of(values)}. Reduce over batch and positions first, or call .float()."
            )
        if values.isnan().any():
            worst = int(values.isnan().nonzero()[0, 0])
            raise ValueError(
                f"the score of {name}[{worst}] is NaN and cannot be ranked. Remove such neurons "
                "or replace their scores, for example with -torch.inf to rank them last."
            )
    return torch.cat([values.detach().cpu().double() for values in scores.values()])


def _how_many(scores: Float[Tensor, " total"], rules: Mapping[str, Any]) -> int:
    """The number of best neurons that the one given rule (k, ratio or threshold) asks for."""
    given = [rule for rule, value in rules.items() if value is not None]
    if len(given) != 1:
        raise ValueError(
            f"from_scores needs exactly one of k, ratio and threshold, got {given or 'none'}."
        )
    [rule], value, total = given, rules[given[0]], len(scores)
    if rule == "k":
        if not isinstance(value, int) or not 0 <= value <= total:
            raise ValueError(f"k must be an integer from 0 to {total}, all neurons, got {value!r}.")
        return value
    number = finite_number(rule, value)
    if rule == "threshold":
        return int((scores >= number).sum())
    if not 0 <= number <= 1:
        raise ValueError(f"ratio must be from 0 to 1, got {value!r}. 0.01 takes 1 percent.")
    return round(number * total)


Avoid = Literal["always", "where possible", "never"]
"""Whether random neurons are others than those that they stand for; where that is possible, at
least half of the hook point is left."""


def drawn_like(
    neurons: Sequence[Neuron], sizes: Mapping[str, int], *, seed: int, avoid: Avoid
) -> list[Neuron]:
    """Random neurons, at each rank one of the same hook point; see `controls.random_neurons`."""
    by_name: dict[str, list[int]] = {}
    for neuron in neurons:
        by_name.setdefault(neuron.name, []).append(neuron.index)
    generator = torch.Generator().manual_seed(seed)
    orders: dict[str, Iterator[int]] = {}
    for name in sorted(by_name, key=natural_order):  # however the neurons are ranked
        chosen = by_name[name]
        pool = torch.ones(sizes[name], dtype=torch.bool)
        if avoid == "always" or (avoid == "where possible" and 2 * len(chosen) <= sizes[name]):
            pool[chosen] = False
        left = pool.nonzero()[:, 0]
        if len(left) < len(chosen):
            raise ValueError(
                f"cannot draw a control for {name!r}: {len(chosen)} of its {sizes[name]} neurons "
                f"are chosen, which leaves {len(left)}. Choose at most half of a layer."
            )
        orders[name] = iter(left[torch.randperm(len(left), generator=generator)].tolist())
    return [Neuron(neuron.name, next(orders[neuron.name])) for neuron in neurons]

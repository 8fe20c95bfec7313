"""How often a neuron has which activation, for each type of tokens, over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.data import Sample
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import Neuron
from vlm_lens.statistics.collect import collect
from vlm_lens.statistics.neuron_statistics import NeuronStatistics
from vlm_lens.statistics.parts import Parts
from vlm_lens.statistics.plan import forward, hooked
from vlm_lens.statistics.prepared import Answers, prepare
from vlm_lens.statistics.streaming import OnBatch, stream
from vlm_lens.statistics.token_types import MODALITIES, TokenType, parse_types

Counts = dict[tuple[str, int], Int[np.ndarray, "neuron bins"]]
"""By hook name and the number of the token type."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many positions of each type have an activation in each bin.

    Attributes:
        name: What has these activations, e.g. a neuron.
        edges: The borders of the bins; a bin holds its lower one, the last bin both.
        counts: By token type; types that no position has are missing.

    Example:
        >>> one = Histogram.of({"text": np.array([0.0, 0.9, 1.0])}, name="demo", bins=2)
        >>> one.edges.tolist(), one.counts["text"].tolist()
        ([0.0, 0.5, 1.0], [1, 2])
    """

    name: str
    edges: Float[np.ndarray, " edges"]
    counts: Mapping[str, Int[np.ndarray, " bins"]]

    @classmethod
    def of(
        cls,
        values: Mapping[str, Shaped[Tensor, "*shape"] | Shaped[np.ndarray, "*shape"]],
        *,
        name: str,
        bins: int = 60,
    ) -> Histogram:
        """The histogram of activations that are at hand, by token type.

        Raises:
            ValueError: There are no activations, or one is infinite or NaN.
        """
        arrays = {key: _flat(value) for key, value in values.items()}
        every = np.concatenate([*arrays.values(), np.empty(0)])
        if not every.size or not np.isfinite(every).all():
            raise ValueError(
                f"expected finite activations, got {every.size}, of which "
                f"{int((~np.isfinite(every)).sum())} are infinite or NaN"
            )
        edges = np.histogram_bin_edges(every, bins)
        return cls(name, edges, {key: np.histogram(a, edges)[0] for key, a in arrays.items()})


def _flat(
    values: Shaped[Tensor, "*shape"] | Shaped[np.ndarray, "*shape"],
) -> Float[np.ndarray, " n"]:
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64).ravel()


def collect_histograms(
    model: HookedVLM,
    samples: Sequence[Sample],
    neurons: Sequence[Neuron],
    *,
    token_types: Sequence[str] | None = None,
    statistics: NeuronStatistics | None = None,
    bins: int = 60,
    batch_size: int = 16,
    on_batch: OnBatch | None = None,
) -> dict[Neuron, Histogram]:
    """Counts how often neurons have which activation, in memory that does not grow.

    The bins lie between each neuron's smallest and largest activation. These are read off
    `statistics`, or found in a pass of their own.

    Args:
        model: The model.
        samples: What it is given; gone through twice unless there are statistics.
        neurons: Which neurons.
        token_types: Which positions are told apart, as for `collect`.
        statistics: Of `collect` over the same samples and token types, at these hook points.
        bins: How many bins of equal width.
        batch_size: How many samples run at once.
        on_batch: Called after each batch with the number of batches done and of all.

    Returns:
        One histogram for each neuron. Activations beyond the statistics' extremes, where these are
        of other samples, count in the first and the last bin.

    Raises:
        ValueError: There are no neurons, a site has none, or a sample cannot be prepared.
        KeyError: The statistics lack a hook point.
        IndexError: There is no such neuron.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> neuron = Neuron("blocks.3.mlp.hook_post", 7)
        >>> samples = load_samples("shapes-llava", n=4)
        >>> found = collect_histograms(model, samples, [neuron], bins=8)[neuron]
        >>> {token_type: int(counts.sum()) for token_type, counts in found.counts.items()}
        {'image': 256, 'text': 37, 'special': 4}
    """
    if not neurons or bins < 1:
        raise ValueError(f"expected neurons and at least one bin, got {len(neurons)} and {bins}")
    by_name: dict[str, list[int]] = {}
    for neuron in dict.fromkeys(neurons):
        by_name.setdefault(neuron.name, []).append(neuron.index)
    types = parse_types(MODALITIES if token_types is None else token_types)
    if statistics is None:
        statistics = collect(
            model,
            samples,
            sites=list(by_name),
            token_types=[one.name for one in types],
            top_k=0,
            batch_size=batch_size,
        )
    ranges = {name: _range(statistics, name, indices) for name, indices in by_name.items()}
    count = _Count(model, by_name, tuple(types), ranges, bins)
    empty: Counts = {}
    counts = stream(samples, count, empty, batch_size=batch_size, on_batch=on_batch)
    return {
        Neuron(name, index): Histogram(
            name=f"{name}[{index}]",
            edges=np.linspace(float(ranges[name][0][i]), float(ranges[name][1][i]), bins + 1),
            counts={
                one.name: counts[name, t][i] for t, one in enumerate(types) if (name, t) in counts
            },
        )
        for name, indices in by_name.items()
        for i, index in enumerate(indices)
    }


def _range(
    statistics: NeuronStatistics, name: str, indices: list[int]
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """The smallest and the largest activation of some neurons, over all token types."""
    lowest = torch.stack([*statistics.min[name].values()]).amin(0)
    highest = torch.stack([*statistics.max[name].values()]).amax(0)
    if wrong := [index for index in indices if index >= len(lowest)]:
        raise IndexError(f"there is no neuron {wrong[0]} at {name!r}, which has {len(lowest)}")
    low, high = lowest[indices].double(), highest[indices].double()
    return low, torch.where(high > low, high, low + 1)


class _Count:
    """Takes samples into the counts, batch by batch."""

    def __init__(
        self,
        model: HookedVLM,
        by_name: Mapping[str, list[int]],
        types: tuple[TokenType, ...],
        ranges: Mapping[str, tuple[Tensor, Tensor]],
        bins: int,
    ) -> None:
        self._model, self._by_name, self._types = model, by_name, types
        self._ranges, self._bins = ranges, bins

    def __call__(self, known: Counts, numbers: list[int], samples: list[Sample]) -> Counts:
        prepared = prepare(self._model, samples, numbers, Answers())
        parts, counts = Parts(prepared), dict(known)

        def reduce(tensor: Tensor, hook: HookPoint) -> None:
            name = str(hook.name)
            chosen = tensor.detach().flatten(0, 1)[:, self._by_name[name]]
            for part in parts.of(self._types, name, tensor.shape, tensor.device):
                found = self._binned(name, chosen[part.rows])
                for number in part.types:
                    before = counts.get((name, number))
                    counts[name, number] = found if before is None else before + found

        hooks: list[Any] = [(list(self._by_name), reduce)]
        with hooked(self._model, hooks):
            forward(self._model, prepared)
        return counts

    def _binned(
        self, name: str, values: Float[Tensor, "pos neuron"]
    ) -> Int[np.ndarray, "neuron bins"]:
        low, high = (end.to(values.device) for end in self._ranges[name])
        share = (values.double() - low) / (high - low)
        bins = (share * self._bins).long().clamp(0, self._bins - 1)
        rows = torch.arange(bins.shape[1], device=bins.device) * self._bins
        counts = torch.bincount((bins + rows).flatten(), minlength=self._bins * bins.shape[1])
        return counts.reshape(bins.shape[1], self._bins).cpu().numpy()

"""How often a neuron has which activation, for each type of tokens, over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vlm_lens.data import Sample
from vlm_lens.inputs.token_types import MODALITIES, TokenType, parse_types
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import Neuron
from vlm_lens.passes import Reading, Reducer, Run, State, one_pass
from vlm_lens.passes.data import ONE
from vlm_lens.passes.run import OnBatch
from vlm_lens.statistics.collect import collect
from vlm_lens.statistics.neuron_statistics import NeuronStatistics


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
        ValueError: There are no neurons, a site has none, or no sample can be prepared.
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
    passed = one_pass(
        model,
        samples,
        {"counts": _Counts(by_name, tuple(types), ranges, bins)},
        sites=list(by_name),
        run=Run(batch_size=batch_size, on_batch=on_batch),
    )
    counts = passed.of("counts", ONE)
    return {
        Neuron(name, index): Histogram(
            name=f"{name}[{index}]",
            edges=np.linspace(float(ranges[name][0][i]), float(ranges[name][1][i]), bins + 1),
            counts={token_type: n[i].numpy() for token_type, n in counts[name].items()},
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


@dataclass(frozen=True)
class _Counts(Reducer):
    """How many positions of each type have an activation in each bin.

    Attributes:
        by_name: The neurons of each hook point.
        types: The token types.
        ranges: By hook point, the neurons' smallest and largest activations.
        bins: How many bins.
    """

    by_name: Mapping[str, list[int]]
    types: tuple[TokenType, ...]
    ranges: Mapping[str, tuple[Tensor, Tensor]]
    bins: int

    def __call__(self, reading: Reading) -> State:
        chosen = reading.activation.flatten(0, 1)[:, self.by_name[reading.site]]
        state: State = {}
        for part in reading.parts(self.types):
            found = self._binned(reading.site, chosen[part.rows])
            for number in part.types:
                name = self.types[number].name
                state[name] = state[name] + found if name in state else found
        return state

    def _binned(self, name: str, values: Float[Tensor, "pos neuron"]) -> Int[Tensor, "neuron bins"]:
        low, high = (end.to(values.device) for end in self.ranges[name])
        share = (values.double() - low) / (high - low)
        bins = (share * self.bins).long().clamp(0, self.bins - 1)
        rows = torch.arange(bins.shape[1], device=bins.device) * self.bins
        counts = torch.bincount((bins + rows).flatten(), minlength=self.bins * bins.shape[1])
        return counts.reshape(bins.shape[1], self.bins)

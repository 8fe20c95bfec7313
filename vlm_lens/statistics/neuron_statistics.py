"""What a pass over samples found: statistics of every neuron for each type of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from vlm_lens.neurons.neuron import split_name
from vlm_lens.results import Result
from vlm_lens.statistics.moments import Moments
from vlm_lens.statistics.site_statistics import SiteStatistics
from vlm_lens.statistics.top_samples import TopSamples
from vlm_lens.statistics.views import ByName, Value

_FREE = ("batch_size", "provenance")
"""Parameters in which results that are merged may differ."""


@dataclass(frozen=True, eq=False, repr=False)
class NeuronStatistics(Result):
    """Statistics of every neuron of some hook points, for each type of tokens.

    Each statistic is a mapping from hook names to mappings from token types to tensors [d]:
    ``found.mean["blocks.3.mlp.hook_act"]["image"]``. A type that no position has at a hook point is
    missing there.

    Attributes:
        token_types: The types that were asked for.
        ranges: Which samples: the numbers of the first one and of the one behind the last.
        parameters: Everything else that it depends on, as JSON can hold it.
        sites: What is kept of each hook point.
        left_out: The samples among them that do not count, and why.
    """

    KIND = "statistics"
    DIGITS = ".6g"

    token_types: tuple[str, ...]
    ranges: tuple[tuple[int, int], ...]
    parameters: dict[str, Any]
    sites: Mapping[str, SiteStatistics] = field(default_factory=dict)
    left_out: Mapping[int, str] = field(default_factory=dict)

    # What it says -----------------------------------------------------------------------------

    @property
    def n_samples(self) -> int:
        """How many samples count."""
        return sum(stop - start for start, stop in self.ranges) - len(self.left_out)

    def moments(self, name: str) -> dict[str, Moments]:
        """All there is of a hook point, by token type."""
        found = {one: self.sites[name].of(i) for i, one in enumerate(self.token_types)}
        return {one: moments for one, moments in found.items() if moments is not None}

    @property
    def count(self) -> ByName[int]:
        """At how many positions (a number, not a tensor)."""
        return self._view(lambda moments: moments.count)

    @property
    def sum(self) -> ByName[Tensor]:
        """Sum of the activations, float64."""
        return self._view(lambda moments: moments.total)

    @property
    def sum_of_squares(self) -> ByName[Tensor]:
        """Sum of the squared activations, float64."""
        return self._view(
            lambda moments: moments.deviations + moments.total.square() / moments.count
        )

    @property
    def mean(self) -> ByName[Tensor]:
        """Mean activation, float64."""
        return self._view(lambda moments: moments.mean)

    @property
    def variance(self) -> ByName[Tensor]:
        """Mean squared difference from the mean, float64."""
        return self._view(lambda moments: moments.variance)

    @property
    def std(self) -> ByName[Tensor]:
        """Square root of `variance`."""
        return self._view(lambda moments: moments.variance.sqrt())

    @property
    def max(self) -> ByName[Tensor]:
        """Largest activation."""
        return self._view(lambda moments: moments.largest)

    @property
    def min(self) -> ByName[Tensor]:
        """Smallest activation."""
        return self._view(lambda moments: moments.smallest)

    @property
    def active_rate(self) -> ByName[Tensor]:
        """At which share of the positions the activation is above ``active_above``, float64."""
        return self._view(lambda moments: moments.active / moments.count)

    @property
    def attention(self) -> ByName[Tensor]:
        """Sum of the attention that the positions receive (a number), where it was asked for."""
        return self._weighted(lambda weight, _: weight)

    @property
    def attention_sum(self) -> ByName[Tensor]:
        """Sum of the activations, each times the attention that its position receives."""
        return self._weighted(lambda _, weighted: weighted)

    @property
    def attention_mean(self) -> ByName[Tensor]:
        """The same divided by the sum of the attention."""
        return self._weighted(lambda weight, weighted: weighted / weight)

    def _weighted(self, read: Callable[[Tensor, Tensor], Tensor]) -> ByName[Tensor]:
        every = [moments for site in self.sites.values() for moments in site.moments.values()]
        if any(moments.weighted is None for moments in every):
            raise ValueError("attention was not asked for: collect(..., attention=True)")

        def read_both(moments: Moments) -> Tensor:
            assert moments.weight is not None
            assert moments.weighted is not None
            return read(moments.weight, moments.weighted)

        return self._view(read_both)

    def _view(self, read: Callable[[Moments], Value]) -> ByName[Value]:
        return ByName([*self.sites], self.token_types, self.moments, read)

    @property
    def top(self) -> dict[str, TopSamples]:
        """By hook name, the samples in which each neuron is most active."""
        return {name: site.top for name, site in self.sites.items()}

    # Parts of a data set --------------------------------------------------------------------------

    def merge(self, other: NeuronStatistics) -> NeuronStatistics:
        """This and the statistics of other samples.

        Counts, extremes, rates and top samples are what one pass over all samples gives, exactly;
        sums are, to rounding.

        Raises:
            ValueError: Something else than the samples differs, or samples are in both.

        Example:
            >>> from vlm_lens import HookedVLM, load_samples
            >>> from vlm_lens.statistics import collect
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> samples = load_samples("shapes-llava", n=4)
            >>> options = {"sites": "blocks.0.mlp.hook_act"}
            >>> late = collect(model, samples[2:], first_sample=2, **options)
            >>> collect(model, samples[:2], **options).merge(late).n_samples
            4
        """
        self._check_alike(other)
        ranges = sorted([*self.ranges, *other.ranges])
        for (start, stop), (next_start, _) in zip(ranges, ranges[1:], strict=False):
            if next_start < stop:
                raise ValueError(
                    f"samples from {next_start} on are in both, which {start} to {stop - 1} also "
                    "are: say first_sample when parts of a data set are collected apart"
                )
        return replace(
            self,
            ranges=_connected(ranges),
            sites={name: site.cpu() for name, site in _joined(self.sites, other.sites).items()},
            left_out=dict(sorted({**self.left_out, **other.left_out}.items())),
        )

    def _check_alike(self, other: NeuronStatistics) -> None:
        for name, value in self.parameters.items():
            if name not in _FREE and other.parameters.get(name) != value:
                raise ValueError(
                    f"cannot merge statistics of different {name}: {value!r} and "
                    f"{other.parameters.get(name)!r}"
                )
        models = [one.parameters.get("provenance", {}).get("model") for one in (self, other)]
        if models[0] != models[1]:
            raise ValueError(f"cannot merge statistics of different models: {models}")

    # Looking at it ----------------------------------------------------------------------------

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each neuron and token type that its hook point has.

        Returns:
            Columns ``component``, ``layer``, ``site``, ``index``, ``name``, ``token_type``,
            ``count``, ``mean``, ``std``, ``min``, ``max``, ``active_rate``, and ``attention_mean``
            where it was asked for.
        """
        frames = [
            _frame(name, token_type, moments)
            for name in self.sites
            for token_type, moments in self.moments(name).items()
        ]
        return pd.concat(frames, ignore_index=True).astype({"layer": "Int64"})

    def table(self) -> pd.DataFrame:
        """One row for each neuron and type of tokens."""
        return self.to_dataframe()

    def summary(self) -> str:
        """Of which neurons, samples and tokens, in a line."""
        sizes = [len(next(iter(site.moments.values())).total) for site in self.sites.values()]
        seen = [one for one in self.token_types if any(one in self.count[n] for n in self.sites)]
        plural, plurals = "s" * (len(sizes) != 1), "s" * (self.n_samples != 1)
        without = f"; {len(self.left_out)} left out" if self.left_out else ""
        return (
            f"{sum(sizes)} neurons at {len(sizes)} hook point{plural} over "
            f"{self.n_samples} sample{plurals}{without}: {', '.join(seen)}"
        )

    # On disk ----------------------------------------------------------------------------------

    def packed(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Fields that JSON can hold, and tensors, with nothing left to compare."""
        sites = {name: replace(site, top=site.top.settled()) for name, site in self.sites.items()}
        return Result.packed(replace(self, sites=sites))


def _joined(
    one: Mapping[str, SiteStatistics], other: Mapping[str, SiteStatistics]
) -> dict[str, SiteStatistics]:
    both = dict(one)
    for name, site in other.items():
        both[name] = both[name].plus(site) if name in both else site
    return both


def _connected(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sorted ranges, with those that follow each other as one."""
    found: list[tuple[int, int]] = []
    for start, stop in ranges:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return tuple(found)


def _frame(name: str, token_type: str, moments: Moments) -> pd.DataFrame:
    component, layer, site = split_name(name)
    values = {
        "mean": moments.mean,
        "std": moments.variance.sqrt(),
        "min": moments.smallest,
        "max": moments.largest,
        "active_rate": moments.active / moments.count,
    }
    if moments.weighted is not None and moments.weight is not None:
        values["attention_mean"] = moments.weighted / moments.weight
    about = {"component": component, "layer": layer, "site": site}
    about["index"] = torch.arange(len(moments.total)).numpy()
    about |= {"name": name, "token_type": token_type, "count": moments.count}
    return pd.DataFrame({**about, **{key: value.numpy() for key, value in values.items()}})

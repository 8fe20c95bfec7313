"""The statistics of one hook point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

from vlm_lens.statistics.moments import Moments
from vlm_lens.statistics.top_samples import TopSamples


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """The statistics of one hook point.

    Attributes:
        moments: By token types (their places in the list of all), those of the positions that are
            of exactly these types.
        top: The samples in which each neuron is most active.
    """

    moments: Mapping[tuple[int, ...], Moments]
    top: TopSamples

    def plus(self, other: SiteStatistics) -> SiteStatistics:
        """These and those of other samples."""
        both = dict(self.moments)
        for types, moments in other.moments.items():
            both[types] = both[types].plus(moments) if types in both else moments
        return SiteStatistics(both, self.top.merge(other.top))

    def of(self, token_type: int) -> Moments | None:
        """The moments of one type; None if no position was of this type."""
        chosen = [self.moments[types] for types in sorted(self.moments) if token_type in types]
        return reduce(Moments.plus, chosen) if chosen else None

    def cpu(self) -> SiteStatistics:
        """The same on the CPU, with nothing left to compare."""
        moments = {types: moments.cpu() for types, moments in self.moments.items()}
        return SiteStatistics(moments, self.top.settled().cpu())

"""Counts, sums, spreads and extremes of neurons, which merge without losing precision.

Within a batch sums are taken of differences from a value near the mean; batches are merged in
float64 with the formulas of Chan, Golub and LeVeque (1983, "Algorithms for computing the sample
variance"), so that a large mean does not drown a small spread.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor

PerNeuron = Float[Tensor, " d"]


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of each neuron of a hook point, over some positions.

    Attributes:
        count: How many positions.
        total: Sum of the activations, float64.
        deviations: Sum of the squared differences from the mean, float64.
        active: At how many positions the activation is above the threshold, float64.
        largest: The largest activation.
        smallest: The smallest one.
        weight: Sum of the attention that the positions receive, float64; None if not asked for.
        weighted: Sum of the activations, each times the attention that its position receives.

    Example:
        >>> one, two = (Moments.of(torch.tensor([[x]]), active_above=0.0) for x in (1.0, 4.0))
        >>> both = one.plus(two)
        >>> both.count, both.total.item(), both.variance.item()
        (2, 5.0, 2.25)
    """

    count: int
    total: PerNeuron
    deviations: PerNeuron
    active: PerNeuron
    largest: PerNeuron
    smallest: PerNeuron
    weight: Float[Tensor, ""] | None = None
    weighted: PerNeuron | None = None

    @classmethod
    def of(cls, activations: Float[Tensor, "pos d"], *, active_above: int | float) -> Moments:
        """Those of some activations, without attention."""
        wide = activations.double()
        centred = wide - wide.mean(0)
        return cls(
            count=len(activations),
            total=wide.sum(0),
            deviations=centred.square().sum(0),
            active=(activations > active_above).double().sum(0),
            largest=activations.amax(0),
            smallest=activations.amin(0),
        )

    @property
    def mean(self) -> PerNeuron:
        return self.total / self.count

    @property
    def variance(self) -> PerNeuron:
        """The mean squared difference from the mean (divided by the count, not by one less)."""
        return self.deviations / self.count

    @property
    def is_finite(self) -> bool:
        """Whether no activation (and no weight) is infinite or NaN: no sum would be finite."""
        sums = [self.deviations, self.weighted]
        return all(bool(one.isfinite().all()) for one in sums if one is not None)

    def plus(self, other: Moments) -> Moments:
        """Those of the positions of both; the same, to rounding, in whatever order they come."""
        n, m = self.count, other.count
        apart = other.mean - self.mean
        return Moments(
            count=n + m,
            total=self.total + other.total,
            deviations=self.deviations + other.deviations + apart.square() * (n * m / (n + m)),
            active=self.active + other.active,
            largest=torch.maximum(self.largest, other.largest),
            smallest=torch.minimum(self.smallest, other.smallest),
            weight=_sum(self.weight, other.weight),
            weighted=_sum(self.weighted, other.weighted),
        )

    def cpu(self) -> Moments:
        """The same on the CPU."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.cpu() for name, tensor in tensors.items()})


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else one + other

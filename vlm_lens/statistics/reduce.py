"""From activations to what is kept of them, part by part, while the model runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.passes.positions import Part
from vlm_lens.statistics.moments import Moments

_IN_CACHE = 2**17
"""On a CPU so many numbers are worked on at a time, so that they stay in its cache."""


def moments_of(
    activations: Float[Tensor, "position d"],
    rows: Int[Tensor, " n"],
    *,
    active_above: int | float,
    weights: Float[Tensor, " position"] | None = None,
) -> Moments:
    """The moments of some positions' activations.

    Args:
        activations: All positions of all rows.
        rows: Which of them count; at least one.
        active_above: A neuron is active where its activation is larger than this.
        weights: What each position counts in the weighted sums.

    Example:
        >>> found = moments_of(torch.tensor([[1.0], [9.0], [3.0]]), torch.tensor([0, 2]),
        ...                    active_above=2.0)
        >>> found.count, found.mean.item(), found.active.item()
        (2, 2.0, 1.0)
    """
    sums = _Sums(active_above)
    for some in rows.split(_at_once(activations)):
        sums.add(_taken(activations, some), None if weights is None else weights[some])
    return sums.moments()


@dataclass(frozen=True, eq=False)
class Peaks:
    """The largest activation of each sample of a batch.

    Attributes:
        values: One for each sample and neuron.
        samples: The samples' places in the batch.
        positions: The first of the positions that have it, by its number in the sample.
    """

    values: Float[Tensor, "sample d"]
    samples: list[int]
    positions: Int[Tensor, "sample d"]


def peaks_of(activations: Float[Tensor, "position d"], part: Part) -> Peaks:
    """The largest activation of each sample, over its positions in a part.

    In floating point throughout: on a CPU that is several times faster than `Tensor.max`.
    """
    wide = torch.promote_types(activations.dtype, torch.float32)
    n, values, behind = max(part.lengths), [], []
    buffer = torch.empty(n, activations.shape[1], dtype=wide, device=activations.device)
    from_behind = torch.arange(n, 0, -1, dtype=wide, device=activations.device)[:, None]
    for span, length in zip(part.spans, part.lengths, strict=True):
        its = activations[span].to(wide)
        values.append(its.amax(0))
        is_largest = torch.eq(its, values[-1], out=buffer[:length])
        behind.append(is_largest.mul_(from_behind[:length]).amax(0))
    first = n - torch.stack(behind).long()
    lengths = torch.tensor(part.lengths, device=activations.device)
    starts = (lengths.cumsum(0) - lengths)[:, None]
    first = torch.minimum(first, lengths[:, None] - 1)  # NaN equals nothing
    return Peaks(torch.stack(values), part.samples, part.ordinals[starts + first].int())


def _at_once(activations: Float[Tensor, "position d"]) -> int:
    """How many positions to work on at a time."""
    on_cpu = activations.device.type == "cpu"
    return max(1, _IN_CACHE // activations.shape[1]) if on_cpu else len(activations)


def _taken(activations: Tensor, rows: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
    """A copy of some rows, at least in float32."""
    chunk = activations.index_select(0, rows)
    return chunk.to(torch.promote_types(chunk.dtype, torch.float32))


class _Sums:
    """Adds up chunks of activations, which it writes into.

    Squares are taken of differences from the mean of the first chunk; in float32, those of the
    activations themselves would lose a spread that is small beside the mean.
    """

    def __init__(self, active_above: int | float) -> None:
        self._active_above = active_above
        self._totals: dict[str, Tensor] = {}
        self._count = 0

    def add(self, chunk: Float[Tensor, "n d"], weights: Float[Tensor, " n"] | None) -> None:
        known, buffer = self._totals, torch.empty_like(chunk)
        if not known:
            known["pivot"] = chunk.mean(0)
        largest, smallest = chunk.amax(0), chunk.amin(0)
        known["largest"] = torch.maximum(known.get("largest", largest), largest)
        known["smallest"] = torch.minimum(known.get("smallest", smallest), smallest)
        self._plus("active", torch.gt(chunk, self._active_above, out=buffer).sum(0))
        if weights is not None:
            weighted = torch.mul(chunk, weights.to(chunk.dtype)[:, None], out=buffer)
            self._plus("weighted", weighted.sum(0))
            self._plus("weight", weights.double().sum())
        chunk.sub_(known["pivot"])
        self._plus("apart", chunk.sum(0))
        self._plus("squares", chunk.mul_(chunk).sum(0))
        self._count += len(chunk)

    def _plus(self, name: str, value: Tensor) -> None:
        known = self._totals.get(name)
        self._totals[name] = value.double() if known is None else known.add_(value)

    def moments(self) -> Moments:
        totals, n = self._totals, self._count
        return Moments(
            count=n,
            total=totals["apart"] + totals["pivot"].double() * n,
            deviations=(totals["squares"] - totals["apart"].square() / n).clamp_(min=0),
            active=totals["active"],
            largest=totals["largest"],
            smallest=totals["smallest"],
            weight=totals.get("weight"),
            weighted=totals.get("weighted"),
        )

"""The samples in which each neuron is most active, kept in memory that does not grow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_LOW = 2**32
_FLIP = 0x7FFFFFFF
_AT_LEAST = 64
"""So many samples are gathered before the best of them are chosen, which takes longer than adding
one."""


@dataclass(frozen=True, eq=False)
class TopSamples:
    """The `k` samples with the largest activations of each neuron, and where in them these are.

    A sample counts with its largest activation. Of equal ones the sample that comes first is
    better, so that the result does not depend on the order in which samples came.

    Attributes:
        k: At most so many samples a neuron.
        chunks: What came in and was not yet compared: each has keys, which hold the activation
            (float32) and the number of the sample in the order in which they rank, and positions.

    Example:
        >>> top = TopSamples(2)
        >>> for sample, value in enumerate([0.5, 3.0, -1.0, 3.0]):
        ...     top = top.plus(torch.tensor([[value]]), [sample], torch.tensor([[7]]))
        >>> top.values.tolist(), top.samples.tolist(), top.positions.tolist()
        ([[3.0], [3.0]], [[1], [3]], [[7], [7]])
    """

    k: int
    chunks: tuple[tuple[Int[Tensor, "_n d"], Int[Tensor, "_n d"]], ...] = ()

    def plus(
        self,
        values: Float[Tensor, "sample d"],
        samples: list[int],
        positions: Int[Tensor, "sample d"],
    ) -> TopSamples:
        """This and more samples.

        Args:
            values: Each neuron's largest activation in each sample.
            samples: The samples' numbers, below 2**32, of which none has come before.
            positions: Where in the sample the largest activation is.
        """
        numbers = torch.tensor(samples, device=values.device)[:, None]
        keys = _ordered(values) * _LOW + (_LOW - 1 - numbers)
        return self._with((keys, positions.int()))

    def merge(self, other: TopSamples) -> TopSamples:
        """This and the samples of another one, none of which is in both.

        Raises:
            ValueError: The other one keeps another number of samples.
        """
        if other.k != self.k:
            raise ValueError(f"expected the top {self.k} samples, got the top {other.k}")
        return self._with(*other.chunks)

    def _with(self, *more: tuple[Tensor, Tensor]) -> TopSamples:
        chunks = (*self.chunks, *more)
        n_rows = sum(len(keys) for keys, _ in chunks)
        if n_rows < self.k + max(self.k, _AT_LEAST):
            return TopSamples(self.k, chunks)
        return TopSamples(self.k, (_best(chunks, self.k),))

    def settled(self) -> TopSamples:
        """The same with nothing left to compare, best first."""
        if not self.chunks:
            return self
        keys, positions = _best(self.chunks, self.k)
        order = keys.argsort(dim=0, descending=True)
        return TopSamples(self.k, ((keys.gather(0, order), positions.gather(0, order)),))

    def cpu(self) -> TopSamples:
        """The same on the CPU."""
        return TopSamples(self.k, tuple((key.cpu(), where.cpu()) for key, where in self.chunks))

    @classmethod
    def of(cls, k: int, state: Mapping[str, Tensor]) -> TopSamples:
        """Those in a state of a pass."""
        return cls(k, ((state["keys"], state["positions"]),) if state else ())

    @property
    def state(self) -> dict[str, Tensor]:
        """Their keys and positions, as a pass keeps them."""
        if not self.chunks:
            return {}
        keys, positions = (torch.cat(tensors) for tensors in zip(*self.chunks, strict=True))
        return {"keys": keys, "positions": positions}

    # What they are ----------------------------------------------------------------------------

    @property
    def values(self) -> Float[Tensor, "rank d"]:
        """The activations, largest first, float32; fewer than `k` where there are fewer samples."""
        ordered = (self._settled(0) >> 32).int()
        return torch.where(ordered < 0, ordered ^ _FLIP, ordered).view(torch.float32)

    @property
    def samples(self) -> Int[Tensor, "rank d"]:
        """The numbers of their samples, int64."""
        return _LOW - 1 - (self._settled(0) & (_LOW - 1))

    @property
    def positions(self) -> Int[Tensor, "rank d"]:
        """Where they are: the position's number among those of its sample at this hook point."""
        return self._settled(1)

    def _settled(self, which: int) -> Tensor:
        if not self.chunks:
            return torch.zeros(0, 0, dtype=torch.int64)
        return self.settled().chunks[0][which]


def _best(chunks: tuple[tuple[Tensor, Tensor], ...], k: int) -> tuple[Tensor, Tensor]:
    """The k largest keys, in any order; no two keys are the same."""
    keys, positions = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
    if len(keys) <= k:
        return keys, positions
    best, places = keys.topk(k, dim=0, sorted=False)
    return best, positions.gather(0, places)


def _ordered(values: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Whole numbers in the order of float32 values: -0 and 0 are one."""
    bits = (values.float() + 0.0).view(torch.int32)
    return torch.where(bits < 0, bits ^ _FLIP, bits).long()

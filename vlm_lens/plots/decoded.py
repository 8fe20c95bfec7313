"""What figures need to know of a lens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Decoded(Protocol):
    """What positions decode to at each depth, as any lens says it."""

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points that were decoded, by depth."""
        ...

    @property
    def depths(self) -> tuple[int, ...]:
        """How many blocks are passed."""
        ...

    @property
    def positions(self) -> tuple[int, ...]:
        """The positions, in the sample's sequence."""
        ...

    @property
    def probabilities(self) -> Float[Tensor, "depth pos k"]:
        """Those of the most probable tokens, best first."""
        ...

    @property
    def followed(self) -> Mapping[str, Float[Tensor, "depth pos"]]:
        """The probability of each token that was asked for, by its text."""
        ...

    def words(self, depth: int, pos: int) -> list[str]:
        """The texts of the most probable tokens, best first."""
        ...

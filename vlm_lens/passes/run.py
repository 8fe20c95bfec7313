"""How work over samples is done: how much at once, where it is kept, which share, who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

OnBatch = Callable[[int, int | None], None]
"""Is told after each batch how many are done, and how many there are (None: not known)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a pass over samples is done.

    Attributes:
        batch_size: How many samples run at once.
        folder: What is done is kept here, and the same call goes on from it. None keeps nothing.
        every: After so many batches it is written, and when something interrupts.
        kind: What it is called there.
        shard: Which share of the batches is done: ``(i, n)`` takes batches i, i + n, i + 2n, ...
            Merged, the shares of all i give what one pass over everything does.
        on_batch: Is told after each batch.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> Run(batch_size=4, shard=(1, 2)).shard
        (1, 2)
    """

    batch_size: int = 16
    folder: Path | None = None
    every: int = 8
    kind: str = "pass"
    shard: tuple[int, int] = (0, 1)
    on_batch: OnBatch | None = None

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("every", self.every)):
            if value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        part, n = self.shard
        if not 0 <= part < n:
            raise ValueError(f"expected shard (i, n) with i from 0 to n - 1, got {self.shard}")

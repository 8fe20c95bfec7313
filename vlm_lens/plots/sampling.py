"""What is left out where there is more than a figure can show: evenly, and with a note."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def evenly(n: int, most: int) -> Int[np.ndarray, " kept"]:
    """At most so many of `n` places, evenly apart, the first and the last among them.

    Example:
        >>> evenly(100, 4).tolist(), evenly(3, 4).tolist()
        ([0, 33, 66, 99], [0, 1, 2])
    """
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)


def chosen_heads(
    weights: Float[np.ndarray, " head"], heads: Sequence[int] | None, most: int
) -> tuple[list[int], str]:
    """The heads to draw, and a note where these are not all.

    Args:
        weights: By which they are chosen, largest first.
        heads: Those that were asked for; None for all.
        most: At most so many if none were asked for.

    Raises:
        IndexError: There is no such head.

    Example:
        >>> chosen_heads(np.array([0.1, 0.5, 0.3]), None, 2)[0]
        [1, 2]
    """
    n = len(weights)
    if heads is not None:
        for head in heads:
            if not 0 <= head < n:
                raise IndexError(f"there is no head {head}: there are {n}, counted from 0")
        return [int(head) for head in heads], ""
    if n <= most:
        return list(range(n)), ""
    best = np.argsort(-weights, kind="stable")[:most]
    note = f"{most} of {n} heads: those that attend there most; heads=[...] shows others."
    return sorted(best.tolist()), note

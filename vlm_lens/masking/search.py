"""The smallest of nested sets that does something, found by few measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

Test = Callable[[Sequence[int]], Iterable[bool]]
"""From several k, smallest first, whether each of them does it; they may be measured together.

No more is taken from an iterator than up to the first that does.
"""

_NEAR = 2
"""So many k right before a result are tested as well."""


def smallest(
    test: Test, *, n: int, width: int = 1, probes: int = 8, exhaustive: bool = False
) -> int | None:
    """The smallest k from 1 to n that passes a test; None if none is found to.

    It gallops (1, 2, 4, ... n) to the first k that passes and narrows the interval below it: if all
    larger k pass too, that is the smallest. To notice if they do not, it then probes the two k
    before, and others evenly spaced below, and goes on from the first that passes. What it returns
    always passes, and the k before it does not; only ``exhaustive`` is sure to find the smallest on
    any curve.

    Args:
        test: Tells for some k whether they pass.
        n: The largest k.
        width: How many k are tested together.
        probes: How many k below a result are tested.
        exhaustive: Whether to test 1, 2, 3, ... until one passes.

    Raises:
        ValueError: `n` or `width` is less than 1, or `probes` less than 0.

    Example:
        >>> smallest(lambda ks: [k >= 700 for k in ks], n=10_000)
        700
        >>> smallest(lambda ks: [k in (40, 41, 42) or k >= 90 for k in ks], n=128, probes=31)
        40
        >>> smallest(lambda ks: [k > 700 for k in ks], n=700) is None
        True
    """
    if n < 1 or width < 1 or probes < 0:
        raise ValueError(
            f"expected n and width of at least 1 and probes of at least 0, got n={n}, "
            f"width={width} and probes={probes}"
        )
    candidates = range(1, n + 1) if exhaustive else _powers(n)
    low, high = _tried(test, candidates, width, low=0)
    while high is not None and not exhaustive:
        high = _narrowed(test, low, high, width)
        below = {*_between(0, high, probes), *range(max(1, high - _NEAR), high)}
        low, lower = _tried(test, sorted(below), width, low=0)
        if lower is None:
            return high
        high = lower
    return high


def _powers(n: int) -> list[int]:
    return [*(1 << i for i in range((n - 1).bit_length())), n]


def _between(low: int, high: int, width: int) -> list[int]:
    """Up to ``width`` evenly spaced numbers between two others."""
    gap = high - low
    steps = min(width, gap - 1) + 1
    return [low + round(gap * step / steps) for step in range(1, steps)]


def _narrowed(test: Test, low: int, high: int, width: int) -> int:
    """A k that passes and whose predecessor fails, between one that fails and one that passes."""
    while high - low > 1:
        low, found = _tried(test, _between(low, high, width), width, low=low)
        high = high if found is None else found
    return high


def _tried(test: Test, ks: Sequence[int], width: int, *, low: int) -> tuple[int, int | None]:
    """The last k that fails, and behind it the first that passes, after some tests in order."""
    for i in range(0, len(ks), width):
        some = ks[i : i + width]
        for k, passes in zip(some, test(some), strict=False):
            if passes:
                return low, k
            low = k
    return low, None

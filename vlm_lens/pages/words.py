"""Numbers and lists in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def listing(parts: Sequence[str]) -> str:
    """Several things in one sentence.

    Example:
        >>> listing(["red"]), listing(["red", "green", "blue"])
        ('red', 'red, green and blue')
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def percent(share: float) -> str:
    """A share in three digits.

    Example:
        >>> percent(0.98765), percent(0.0)
        ('98.8%', '0%')
    """
    return f"{100 * share:.3g}%"


def between(low: float, high: float) -> str:
    """From the lower to the higher of two shares, or the one that they are.

    Example:
        >>> between(0.25, 0.5), between(0.5, 0.5)
        ('25% to 50%', '50%')
    """
    return percent(low) if percent(low) == percent(high) else f"{percent(low)} to {percent(high)}"

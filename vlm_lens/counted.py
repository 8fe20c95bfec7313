"""Numbers of things, in words."""

from __future__ import annotations


def counted(n: int, thing: str) -> str:
    """A number with the name of what it counts.

    Example:
        >>> counted(1, "sample"), counted(1200, "sample")
        ('1 sample', '1,200 samples')
    """
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"

"""Axes for curves over the number of masked neurons, with room for what has no place on them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlm_lens.plots.layout import AXIS

ZERO = 0.5
"""Where k = 0 is drawn: a logarithmic axis has no place of its own for it."""

_FEW = 6
_PAD = 9
_ROW = 11


def k_axis(last: int) -> dict[str, Any]:
    """A logarithmic axis with k = 0 to the left of 1."""
    ticks = range(1, last + 1) if last <= _FEW else log_ticks(1.0, last)
    ends = 0.8 * ZERO, 1.1 * max(last, 1) ** 1.03
    return {
        **AXIS,
        "type": "log",
        "title": _title("masked neurons k, best-ranked first"),
        "range": [math.log10(end) for end in ends],
        "tickvals": [ZERO, *ticks],
        "ticktext": ["0", *map(written, ticks)],
        "anchor": "free",
        "position": 0,
    }


@dataclass(frozen=True)
class Scale:
    """A vertical axis, linear or logarithmic, with rows at its top for values that are not finite.

    Attributes:
        is_log: Whether it is logarithmic.
        low: The smallest finite value.
        high: The largest one.
        rows: How many curves have values that are not finite; each gets a row.
        height: In pixels.
    """

    is_log: bool
    low: int | float
    high: int | float
    rows: int
    height: int

    @classmethod
    def around(
        cls, values: Iterable[int | float], *, is_log: bool, rows: int, height: int
    ) -> Scale:
        """A scale for these values; a linear one has 0 and 1, a logarithmic one 1 and 2."""
        least = (1.0, 2.0) if is_log else (0.0, 1.0)
        every = [*least, *values]
        return cls(is_log, min(every), max(every), rows, height)

    def row(self, number: int | float) -> float:
        """Where a row is, counted from 0, the lowest."""
        return self._at_pixel(self.height - _PAD - _ROW * (self.rows - 0.5 - number))

    def axis(self, title: str) -> dict[str, Any]:
        """The axis as plotly takes it."""
        ticks = log_ticks(self.low, self.high) if self.is_log else [0, 0.25, 0.5, 0.75, 1]
        labels = [written(tick) for tick in ticks]
        if self.rows:
            ticks, labels = [*ticks, self.row((self.rows - 1) / 2)], [*labels, "∞, NaN"]
        ends = self._at_pixel(0), self._at_pixel(self.height)
        return {
            **AXIS,
            "type": "log" if self.is_log else "linear",
            "title": _title(title),
            "range": [math.log10(end) for end in ends] if self.is_log else ends,
            "tickvals": ticks,
            "ticktext": labels,
        }

    def _at_pixel(self, pixel: int | float) -> float:
        """The value at a height above the axis' lower end."""
        taken = 2 * _PAD + (_ROW * self.rows + _PAD if self.rows else 0)
        share = (pixel - _PAD) / (self.height - taken)
        if self.is_log:
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 8, "font": {"size": 13}}


def log_ticks(low: int | float, high: int | float) -> list[float]:
    """At most some ten round numbers: 1, 2, 5, 10, ... or powers of ten.

    Example:
        >>> log_ticks(1, 30), log_ticks(1, 40_000)
        ([1.0, 2.0, 5.0, 10.0, 20.0], [1.0, 10.0, 100.0, 1000.0, 10000.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    every = max(1, (last - first) // 6)
    ticks = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def written(tick: int | float) -> str:
    """A tick's label.

    Example:
        >>> written(1000.0), written(0.25), written(1e7)
        ('1,000', '0.25', '10<sup>7</sup>')
    """
    power = math.log10(tick) if tick > 0 else 0
    return f"10<sup>{power:.0f}</sup>" if abs(power) >= 5 else f"{tick:,g}"

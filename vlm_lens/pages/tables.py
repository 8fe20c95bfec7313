"""Results as tables of text, for pages and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

NOTHING = "–"
"""What stands for a value that there is none of."""


@dataclass(frozen=True)
class Table:
    """Text in columns.

    Attributes:
        heads: The columns' names.
        rows: The cells.
        numbers: Which columns hold numbers, which are aligned on the right.
    """

    heads: list[str]
    rows: list[list[str]]
    numbers: list[bool]

    def __str__(self) -> str:
        """Lines of plain text, the columns under each other.

        Example:
            >>> print(Table(["stage", "k"], [["clean", "0"], ["collapse", "12"]], [False, True]))
            stage      k
            clean      0
            collapse  12
        """
        lines = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(self._line(line, widths) for line in lines)

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        columns = zip(cells, widths, self.numbers, strict=True)
        aligned = (cell.rjust(n) if right else cell.ljust(n) for cell, n, right in columns)
        return "  ".join(aligned).rstrip()


def written(value: Any) -> str:
    """A value in a table.

    Example:
        >>> written(1234), written(0.123456), written(float("inf")), written(None), written(True)
        ('1,234', '0.1235', '∞', '–', 'yes')
    """
    if value is None or value is pd.NA:
        return NOTHING
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "−∞" if value < 0 else "∞"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def of_frame(frame: pd.DataFrame) -> Table:
    """A data frame, its index left out; values that are not known are dashes."""
    columns = [[_known(value) for value in frame[name]] for name in frame]
    numbers = [_is_number(column) for column in columns]
    rows = [[written(value) for value in row] for row in zip(*columns, strict=True)]
    return Table([str(name).replace("_", " ") for name in frame], rows, numbers)


def of_parameters(parameters: Mapping[str, Any]) -> Table:
    """Parameters by name, those inside of others behind their name."""
    rows = [[name, value] for name, value in _flat(parameters, "")]
    return Table(["parameter", "value"], rows, [False, False])


def _flat(parameters: Mapping[str, Any], inside: str) -> Iterable[tuple[str, str]]:
    for name, value in parameters.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{inside}{name} · ")
        elif isinstance(value, Mapping | list | tuple):
            yield inside + name, ", ".join(map(written, value)) or NOTHING
        else:
            yield inside + name, written(value)


def _known(value: Any) -> Any:
    """A value as Python has it; None for NaN, which in frames means that there is none."""
    plain = value.item() if hasattr(value, "item") else value
    is_missing = plain is pd.NA or (isinstance(plain, float) and math.isnan(plain))
    return None if is_missing else plain


def _is_number(column: Sequence[Any]) -> bool:
    values = [value for value in column if value is not None]
    return bool(values) and all(
        type(value) in (int, float) or str(value).rstrip("%").replace(".", "", 1).isdigit()
        for value in values
    )

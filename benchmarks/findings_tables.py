"""Tables of findings: rows with names, and how the README shows them."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd

Row = dict[str, Any]
Tables = dict[str, list[Row]]
"""Rows by title. A cell is a text, a number, None, or what `over_seeds` makes of several."""

SEEDS = (0, 1, 2)
"""Of samples, and of what is drawn at random."""


def over_seeds(values: Sequence[float]) -> list[float] | int | None:
    """The mean, the least and the largest of what each seed gave.

    Of whole numbers that are the same for all seeds that number alone; None if no seed gave any.

    Example:
        >>> over_seeds([0.5, 0.25, 0.75]), over_seeds([15, 15, 15]), over_seeds([3, 4, 8])
        ([0.5, 0.25, 0.75], 15, [5.0, 3, 8])
    """
    every = [value for value in values if not pd.isna(value)]
    if not every:
        return None
    low, high, is_whole = min(every), max(every), all(isinstance(value, int) for value in every)
    if is_whole and low == high:
        return int(low)
    ends = (low, high) if is_whole else (round(float(low), 6), round(float(high), 6))
    return [round(float(statistics.fmean(every)), 6), *ends]


def together(frames: Sequence[pd.DataFrame], keys: Sequence[str]) -> list[Row]:
    """Rows that have the same keys in the frames of all seeds as one, numbers over the seeds.

    Args:
        frames: One for each seed.
        keys: The columns that say what a row is about; all others hold numbers.
    """
    grouped = pd.concat(frames).groupby(list(keys), sort=False, dropna=False)
    rows = []
    for names, group in grouped:
        row: Row = dict(zip(keys, names, strict=True))
        for column in group.columns.drop(list(keys)):
            row[str(column)] = over_seeds(group[column].tolist())
        rows.append(row)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; "-" where there is nothing."""
    names = list(rows[0])
    is_number = [not any(isinstance(row[name], str) for row in rows) for name in names]
    rule = ["---:" if number and i else "---" for i, number in enumerate(is_number)]
    lines = [names, rule, *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return _range(value)
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.2f}"
    return str(value).replace("|", r"\|")


def _range(values: list[float]) -> str:
    """A mean and what it lies between; alone where all seeds agree as far as one can see."""
    digits = 0 if isinstance(values[1], int) else 2
    mean, low, high = (f"{value:.{digits}f}" for value in values)
    return mean if low == high else f"{mean} ({low} to {high})"


def plain(frame: pd.DataFrame) -> list[Row]:
    """A frame's rows as JSON holds them."""
    return json.loads(frame.to_json(orient="records"))


def say(what: str) -> None:
    """Progress, which is no result, goes to stderr."""
    print(f"{what} ...", file=sys.stderr, flush=True)

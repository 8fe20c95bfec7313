"""What results that are one table have in common: how they look, and how they are kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from vlm_lens.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class TableResult(Result):
    """A result with one row for each measurement.

    Attributes:
        frame: The measurements.
        parameters: Everything that they depend on, as JSON can hold it.
        notes: What a reader must know.
    """

    KIND = "table"
    TITLE: ClassVar[str] = "Measurements"

    frame: pd.DataFrame
    parameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dataframe(self) -> pd.DataFrame:
        """One row for each measurement."""
        return self.frame.copy()

    def table(self) -> pd.DataFrame:
        """The measurements as one reads them."""
        return self.to_dataframe()

    def plot(self) -> go.Figure:
        """The figure of this result."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What figures and tables are called."""
        return self.TITLE

    def summary(self) -> str:
        """What was measured, in a line."""
        return f"{self.title}; {len(self.frame)} measurements"


Rows = list[dict[Any, Any]]
"""The rows of a table, as ``frame.to_dict("records")`` gives them."""


def lines_of(
    rows: Rows, x: str, y: str, *, by: Sequence[str]
) -> dict[str, tuple[list[int | float], list[int | float]]]:
    """One line for each combination of some columns' values, which "and" joins.

    Example:
        >>> rows = [{"layer": 0, "of": "text", "n": 3.0}, {"layer": 1, "of": "text", "n": 4.0}]
        >>> lines_of(rows, "layer", "n", by=["of"])
        {'text': ([0, 1], [3.0, 4.0])}
    """
    lines: dict[str, tuple[list[int | float], list[int | float]]] = {}
    for row in rows:
        xs, ys = lines.setdefault(" and ".join(str(row[name]) for name in by), ([], []))
        xs.append(row[x])
        ys.append(row[y])
    return lines

"""What results that are one table have in common: how they look, and how they are kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from vlm_lens.results import Result, Section

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

    def sections(self) -> list[Section]:
        """Its figure and its table."""
        return [Section(title=self.title, figure=self.plot(), table=self.table())]

    @property
    def title(self) -> str:
        """What figures and tables are called."""
        return self.TITLE

    def summary(self) -> str:
        """What was measured, in a line."""
        return f"{self.title}; {len(self.frame)} measurements"

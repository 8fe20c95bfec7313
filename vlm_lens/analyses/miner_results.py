"""What results that are one table have in common: how they look, and how they are kept on disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pandas as pd

from vlm_lens.results import read_result, write_result

if TYPE_CHECKING:
    import plotly.graph_objects as go

Result = TypeVar("Result", bound="TableResult")


@dataclass(frozen=True, eq=False, repr=False)
class TableResult:
    """A result with one row for each measurement.

    Attributes:
        frame: The measurements.
        parameters: Everything that they depend on, as JSON can hold it.
        notes: What a reader must know.
    """

    KIND: ClassVar[str] = "table"
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

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.title}; {len(self.frame)} measurements)"

    def __str__(self) -> str:
        table = self.table().to_string(index=False, float_format="{:.3f}".format)
        return "\n".join([self.title, table, *map("Note: {}".format, self.notes)])

    def _repr_html_(self) -> str:
        table = self.table().to_html(index=False, float_format="{:.3f}".format)
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return f"<p><b>{escape(self.title)}</b></p>{table}{notes and f'<ul>{notes}</ul>'}"

    # On disk ----------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the table, its parameters and notes into a folder, as JSON.

        Raises:
            TypeError: A parameter is something that JSON cannot hold.
            OSError: The folder cannot be written to.
        """
        columns = {str(name): str(dtype) for name, dtype in self.frame.dtypes.items()}
        plain = self.frame.astype(object).where(self.frame.notna(), None)
        rows = [[_plain(value) for value in row] for row in plain.values.tolist()]
        fields = {"columns": columns, "rows": rows}
        write_result(
            folder,
            kind=self.KIND,
            fields={**fields, "parameters": self.parameters, "notes": self.notes},
        )

    @classmethod
    def load(cls: type[Result], folder: str | os.PathLike[str]) -> Result:
        """Reads what `save` wrote; tuples among the parameters come back as lists.

        Raises:
            FileNotFoundError: There is no such result in the folder.
            ValueError: The file is damaged, or was written by a later version.
        """
        fields, _ = read_result(folder, kind=cls.KIND)
        try:
            frame = pd.DataFrame(fields["rows"], columns=list(fields["columns"]), dtype=object)
            frame = frame.astype(fields["columns"])
            return cls(frame, fields["parameters"], tuple(fields["notes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"cannot read the {cls.KIND} in {os.fspath(folder)!r} ({error}): measure anew."
            ) from error


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


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    return value.item() if hasattr(value, "item") else value

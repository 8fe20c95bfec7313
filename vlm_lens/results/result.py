"""What all results have in common: how they are kept on disk, and how they look."""

from __future__ import annotations

import os
from html import escape
from typing import Any, ClassVar, TypeVar

import pandas as pd
from torch import Tensor

from vlm_lens.results.files import read_result, write_result
from vlm_lens.results.packing import built, packed_whole
from vlm_lens.results.section import Section

R = TypeVar("R", bound="Result")

MOST_ROWS = 40
"""So many rows of a table are printed."""


class Result:
    """Base of frozen dataclasses that are the result of an analysis.

    What a subclass declares is kept: fields may be numbers, texts, tensors, arrays, data frames,
    neurons, other dataclasses, and tuples and mappings of them. It says what it found in a line
    (`summary`), as a table (`table`) and as a page (`headline` and `sections`).

    Attributes:
        KIND: What results of this kind are called on disk.
        DIGITS: How tables show numbers.

    Example:
        >>> from dataclasses import dataclass
        >>> from tempfile import mkdtemp
        >>> @dataclass(frozen=True, repr=False)
        ... class Found(Result):
        ...     KIND = "found"
        ...     layers: tuple[int, ...]
        ...     def summary(self):
        ...         return f"{len(self.layers)} layers"
        >>> folder = mkdtemp()
        >>> Found((3, 4)).save(folder)
        >>> Found.load(folder), Found.load(folder).layers
        (Found(2 layers), (3, 4))
    """

    KIND: ClassVar[str]
    DIGITS: ClassVar[str] = ".3f"

    # What it says -----------------------------------------------------------------------------

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know."""
        return ()

    def summary(self) -> str:
        """What was found, in a line."""
        raise NotImplementedError

    def table(self) -> pd.DataFrame:
        """What was found, as one reads it."""
        raise NotImplementedError

    def shown(self) -> pd.DataFrame:
        """The part of it that is printed."""
        return self.table()

    def headline(self) -> str:
        """What was found, as a page's heading."""
        return self.summary()

    def sections(self) -> list[Section]:
        """What a page says of it, part by part."""
        return [Section(table=self.table())]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.summary()})"

    def __str__(self) -> str:
        table, rest = self._first_rows()
        shown = table.to_string(index=False, float_format=f"{{:{self.DIGITS}}}".format)
        notes = [f"Note: {note}" for note in self.notes]
        return "\n".join([repr(self), shown, *rest, *notes])

    def _repr_html_(self) -> str:
        table, rest = self._first_rows()
        shown = table.to_html(index=False, float_format=f"{{:{self.DIGITS}}}".format)
        notes = "".join(f"<li>{escape(note)}</li>" for note in [*rest, *self.notes])
        return f"<p><b>{escape(repr(self))}</b></p>{shown}{notes and f'<ul>{notes}</ul>'}"

    def _first_rows(self) -> tuple[pd.DataFrame, list[str]]:
        """As much of the table as one reads, and what is missing."""
        table = self.shown()
        more = len(table) - MOST_ROWS
        rest = [f"... and {more:,} more rows; .table() has them all"] if more > 0 else []
        return table.head(MOST_ROWS), rest

    # On disk ----------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Writes the result into a folder: readable JSON, and safetensors where it has tensors.

        Args:
            folder: Is made if there is none; what else is there stays.
            options: Those of the class's `packed`, where it has any.

        Raises:
            TypeError: A parameter is something that JSON cannot hold.
            OSError: The folder cannot be written to, or has another file of that name.
        """
        written, tensors = self.packed(**options)
        write_result(folder, kind=self.KIND, fields=written, tensors=tensors)

    @classmethod
    def load(cls: type[R], folder: str | os.PathLike[str], **options: Any) -> R:
        """Reads what `save` wrote; tuples among the parameters come back as lists.

        Args:
            folder: Where it is.
            options: Those of the class's `unpacked`, where it has any.

        Raises:
            FileNotFoundError: There is no such result in the folder.
            ValueError: A file is damaged, is something else, or is from another version.
        """
        written, tensors = read_result(folder, kind=cls.KIND)
        try:
            return cls.unpacked(written, tensors, **options)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{os.fspath(folder)!r} holds no result that {cls.__name__}.load can read: "
                f"{error!r}. Write it with {cls.__name__}.save."
            ) from error

    def packed(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Fields that JSON can hold, and tensors by name."""
        return packed_whole(self)

    @classmethod
    def unpacked(cls: type[R], written: dict[str, Any], tensors: dict[str, Tensor]) -> R:
        """What `packed` took apart."""
        return built(cls, written, tensors)

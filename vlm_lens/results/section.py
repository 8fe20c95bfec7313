"""A part of what a result has to say, on a page and in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import pandas as pd

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Drawn(Protocol):
    """A figure that is no plotly figure."""

    @property
    def html(self) -> str:
        """Its elements, everything in them escaped."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Section:
    """A part of a page about a result; any of it may be missing.

    Attributes:
        title: Its heading; "" for none, as of the first one, which stands below the page's own.
        sentences: What it says, made from the result's numbers.
        figure: What it draws.
        table: What it lists.
        aside: How that is to be read, in small print.
        shown: Where: a terminal prints what is shown "everywhere"; a table that is "folded" is on
            the page for who opens it.
    """

    title: str = ""
    sentences: Sequence[str] = ()
    figure: go.Figure | Drawn | None = None
    table: pd.DataFrame | None = None
    aside: str = ""
    shown: Literal["everywhere", "page", "folded"] = "everywhere"

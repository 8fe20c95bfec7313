"""The page of a study, and what a terminal says of it: one for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from vlm_lens.pages.environment import render
from vlm_lens.pages.tables import Table, of_frame, of_parameters
from vlm_lens.plots.page import as_json
from vlm_lens.results import Result, Section
from vlm_lens.results.result import MOST_ROWS
from vlm_lens.studies.options import Study


@dataclass(frozen=True, eq=False)
class View:
    """A section, ready for the page.

    Attributes:
        title, sentences, aside, shown: As the section has them.
        figure: A plotly figure, as JSON.
        html: A figure that is none of plotly's.
        table: The table, as text.
    """

    title: str
    sentences: Sequence[str]
    aside: str
    shown: str
    figure: Markup | None
    html: Markup | None
    table: Table | None

    @classmethod
    def of(cls, section: Section) -> View:
        """Makes figures and tables of a section."""
        drawn = section.figure
        is_plotly = isinstance(drawn, go.Figure)
        return cls(
            title=section.title,
            sentences=section.sentences,
            aside=section.aside,
            shown=section.shown,
            figure=as_json(drawn) if is_plotly else None,
            html=None if drawn is None or is_plotly else Markup(drawn.html),  # escaped already
            table=None if section.table is None else of_frame(section.table),
        )


def render_study(
    study: Study,
    result: Result,
    *,
    about: Mapping[str, str],
    notes: Sequence[str] = (),
    options: Mapping[str, Any],
    command: str,
) -> str:
    """Renders the page of a study; the same result gives the same page, byte for byte.

    Args:
        study: What was done.
        result: What was found.
        about: What a reader sees first, such as the model's name.
        notes: What a reader must know about the samples.
        options: What the command was told, defaults included.
        command: The command that makes the page again.

    Returns:
        HTML that asks for nothing else.
    """
    views = [View.of(section) for section in result.sections()]
    found: Mapping[str, Any] = getattr(result, "parameters", {})
    return render(
        "studies/study.html",
        command=command,
        has_figures=any(view.figure for view in views),
        study=study,
        headline=result.headline(),
        about=about,
        notes=[*notes, *result.notes],
        views=views,
        parameters=of_parameters({"options": dict(options), **found}),
    )


def lines(result: Result, *, notes: Sequence[str] = ()) -> list[str]:
    """What a terminal says: the headline, notes, and each section that is shown everywhere.

    Args:
        result: What was found.
        notes: What a reader must know about the samples.
    """
    said = [f"{result.headline().rstrip('.')}.", *(f"Note: {n}" for n in (*notes, *result.notes))]
    for section in result.sections():
        has_words = bool(section.sentences) or section.table is not None
        if section.shown != "everywhere" or not has_words:
            continue
        said += ["", section.title] if section.title else [""]
        said += section.sentences
        if section.table is not None:
            said.append(str(of_frame(section.table.head(MOST_ROWS))))
            if (more := len(section.table) - MOST_ROWS) > 0:
                said.append(f"... and {more:,} more rows, on the page")
    return said

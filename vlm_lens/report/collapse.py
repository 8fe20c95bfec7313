"""The page of a search for critical neurons, and what the demo's page shows of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from vlm_lens.pages.environment import render
from vlm_lens.pages.tables import Table, of_frame, of_parameters, written
from vlm_lens.plots import where_they_sit
from vlm_lens.plots.page import as_json
from vlm_lens.report.measured import measurements, stages
from vlm_lens.report.words import headline, sentences

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from vlm_lens.analyses.comparison import Comparison
    from vlm_lens.analyses.critical import CriticalNeurons

_BEST = 100
"""Of so many neurons it is shown where they sit, if none are critical."""


@dataclass(frozen=True, eq=False)
class Story:
    """What a search found, ready for a page.

    Attributes:
        headline: In a few words.
        sentences: What it means.
        notes: What a reader must know.
        rule: What counts as degradation and as collapse.
        stages: The measurements that matter.
        curve: The collapse curve, as plotly's JSON.
        where: Where the neurons sit, likewise.
        gallery: Clean and masked answers side by side, as HTML.
    """

    headline: str
    sentences: list[str]
    notes: tuple[str, ...]
    rule: str
    stages: Table
    curve: Markup
    where: Markup
    gallery: Markup


@dataclass(frozen=True, eq=False)
class ComparisonView:
    """Several searches side by side, ready for a page."""

    title: str
    table: Table
    notes: tuple[str, ...]
    curves: Markup


def story_of(result: CriticalNeurons) -> Story:
    """Makes figures, tables and sentences of a search."""
    return Story(
        headline=headline(result),
        sentences=sentences(result),
        notes=result.notes,
        rule=result.stages.rule,
        stages=stages(result),
        curve=as_json(result.plot()),
        where=as_json(_where(result)),
        gallery=Markup(result.gallery().html),  # it is escaped already
    )


def render_critical(
    result: CriticalNeurons,
    *,
    best: pd.DataFrame,
    comparisons: Sequence[Comparison] = (),
    model_name: str,
    command: str,
) -> str:
    """Renders the page of a search for critical neurons.

    Args:
        result: What was found.
        best: The best-ranked neurons, a row each.
        comparisons: Other searches beside it.
        model_name: What the model was loaded as.
        command: The command that makes the page again.

    Returns:
        HTML that asks for nothing else.
    """
    return render(
        "report/critical.html",
        command=command,
        has_figures=True,
        model_name=model_name,
        result=result,
        counts=_counts(result),
        story=story_of(result),
        comparisons=[
            ComparisonView(c.title, of_frame(c.table()), c.notes, as_json(c.plot()))
            for c in comparisons
        ],
        best=of_frame(best),
        measurements=measurements(result),
        parameters=of_parameters(result.parameters),
    )


def _counts(result: CriticalNeurons) -> dict[str, str]:
    """How many it takes; with PCICN, as the paper counts too: channels at positions."""
    if result.k is None:
        return {}
    n_entries = result.parameters.get("n_entries")
    if n_entries is None:
        return {"Critical neurons": written(result.k)}
    return {"Distinct channels": written(result.k), "Entries of the list": written(n_entries)}


def _where(result: CriticalNeurons) -> go.Figure:
    """Where the critical neurons sit; where there are none, where the best-ranked do."""
    if result.k is not None:
        return result.where()
    best = result.ranking[:_BEST]
    return where_they_sit(
        best,
        sizes=result.sizes,
        matrices=result.matrices,
        title=f"{result.method}: where the {len(best):,} best-ranked neurons sit",
    )

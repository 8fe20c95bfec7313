"""The demo's report as one self-contained HTML page: no request, readable for ever."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.analyses.explanations import Explanations
from vlm_lens.inputs import PatchGrid
from vlm_lens.pages.environment import render
from vlm_lens.plots import neuron_over_tokens, style
from vlm_lens.report import demo_explained, demo_modalities
from vlm_lens.report.collapse import story_of
from vlm_lens.report.demo_modalities import Modalities
from vlm_lens.report.study import AnswerStudy, NeuronView

_COARSE = 200
"""Images of fewer pixels a side are enlarged to squares, as the model sees them."""


@dataclass(frozen=True)
class Cell:
    """One patch of a heat map, in pixels of the original image."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    opacity: float
    hint: str


def render_report(
    study: AnswerStudy,
    *,
    collapse: CriticalNeurons | None = None,
    about: str = "",
    modalities: Modalities | None = None,
    explained: Explanations | None = None,
    left_out: str = "",
    model_name: str,
    command: str,
) -> str:
    """Renders a study; the same study gives the same page, byte for byte.

    Args:
        study: What `study_answer` found.
        collapse: What `search_collapse` found, if it has searched.
        about: On which samples, in a sentence.
        modalities: What `study_modalities` found, if that makes sense.
        explained: What `explain_candidates` found, likewise.
        left_out: What is not on the page, and why, in a sentence.
        model_name: What the model was loaded as.
        command: The command that makes the report again.

    Returns:
        HTML. It holds the image and all drawings, and asks for nothing else.
    """
    # A picture is an <svg> with one <rect> a patch: hover values without a script, 10 kB each.
    picture, grid = study.inputs.images[0][0], study.token_map.grid()
    return render(
        "report/demo.html",
        command=command,
        has_figures=collapse is not None or modalities is not None,
        study=study,
        text=study.inputs.texts[0],
        model_name=model_name,
        picture=style.data_uri(picture),
        size=picture.size,
        coarse=max(picture.size) < _COARSE,
        visible=grid.visible,
        cells=lambda view: _cells(view, grid),
        tokens=lambda view: _tokens(view, study),
        legend=lambda view: Markup(style.legend(view.over_image, view.limit, "activation")),
        largest=_largest,
        story=None if collapse is None else story_of(collapse),
        about=about,
        n_samples=0 if collapse is None else len(collapse.prompts),
        max_k=0 if collapse is None else len(collapse.ranking),
        modalities=None if modalities is None else demo_modalities.view_of(modalities),
        explained=None if explained is None else demo_explained.view_of(explained),
        left_out=left_out,
    )


def _cells(view: NeuronView, grid: PatchGrid) -> list[Cell]:
    """The patches of a neuron's heat map, in reading order."""
    cells = []
    for row, col in np.ndindex(view.over_image.shape):
        value = float(view.over_image[row, col])
        x0, y0, x1, y1 = grid.box(row, col)
        colour, opacity = style.tint(value, view.limit)
        cells.append(
            Cell(
                *(round(edge, 2) for edge in (x0, y0, x1 - x0, y1 - y0)),
                colour="rgb({},{},{})".format(*colour),
                opacity=opacity,
                hint=f"row {row}, column {col}: {value:.4g}",
            )
        )
    return cells


def _tokens(view: NeuronView, study: AnswerStudy) -> Markup:
    assert view.over_tokens is not None  # the template asks for language-model neurons only
    figure = neuron_over_tokens(
        study.token_map.tokens, view.over_tokens, groups=study.token_map.role, limit=view.limit
    )
    return Markup(figure.html)  # it is escaped already


def _largest(views: Sequence[NeuronView], column: str) -> float:
    """The largest magnitude in a column, for the lengths of its bars."""
    return max(abs(getattr(view, column)) for view in views) or 1.0

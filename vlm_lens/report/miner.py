"""The page of MINER: what was selected, how important it is, and what is lost without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from markupsafe import Markup

from vlm_lens.pages.environment import render
from vlm_lens.pages.tables import NOTHING, Table, of_frame, of_parameters, written
from vlm_lens.pages.words import percent
from vlm_lens.plots.page import as_json
from vlm_lens.report import miner_words as words

if TYPE_CHECKING:
    from vlm_lens.analyses.miner_curve import MaskingCurve
    from vlm_lens.analyses.miner_scores import ModalityScores
    from vlm_lens.experiments import Matrix
    from vlm_lens.experiments.sets import Overlap
    from vlm_lens.report.mined import Mined

_BEST = 10


@dataclass(frozen=True, eq=False)
class Section:
    """A part of the page: what is said, drawn and listed.

    Attributes:
        title: Its heading.
        sentences: What was found.
        figure: As plotly's JSON; None where there is nothing to draw.
        table: The numbers.
        is_long: Whether the table is folded.
    """

    title: str
    sentences: list[str]
    figure: Markup | None
    table: Table
    is_long: bool = False


def render_miner(found: Mined, *, options: Mapping[str, Any], command: str) -> str:
    """Renders the page.

    Args:
        found: What was found.
        options: What the command was told, defaults included.
        command: The command that makes the page again.

    Returns:
        HTML that asks for nothing else.
    """
    best = found.scores.to_dataframe(_BEST, weights=found.weights)
    by_modality = best.groupby("modality", sort=False)
    return render(
        "report/miner.html",
        command=command,
        has_figures=True,
        found=found,
        headline=words.headline(found),
        summary=words.summary(found),
        datasets=of_datasets(found.scores),
        sections=sections(found),
        best={str(name): of_frame(_ranked(rows)) for name, rows in by_modality},
        parameters=of_parameters(_parameters(found, options)),
    )


def sections(found: Mined) -> list[Section]:
    """The parts of the page that show results, in their order."""
    importance = found.scores.plot(weights=found.weights, selected=found.selected)
    selection = words.on_selection(found)
    made = [Section("What was selected", selection, as_json(importance), of_layers(found))]
    if found.overlap is not None:
        said, drawn = words.on_overlap(found.overlap), as_json(found.overlap.plot())
        made.append(Section("What the sets share", said, drawn, of_overlap(found.overlap)))
    if found.specificity is not None:
        said = words.on_specificity(found, found.specificity)
        drawn, table = as_json(found.specificity.plot()), of_specificity(found.specificity)
        made.append(Section("Whether they are that modality's", said, drawn, table))
    if found.curve is not None:
        said, table = words.on_curve(found.curve), of_frame(found.curve.table())
        made.append(Section("With more and more masked", said, _drawn(found.curve), table, True))
    if found.complement is not None:
        said, table = words.on_complement(found.complement), of_frame(found.complement.table())
        drawn = _drawn(found.complement)
        made.append(Section("With all others masked", said, drawn, table, True))
    return made


def _drawn(curve: MaskingCurve) -> Markup | None:
    """The figure of a curve, if something was masked."""
    if not any(curve.frame["ratio"].tolist()):
        return None
    return as_json(curve.plot())


def _ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """The best neurons of one modality, ranks from 1."""
    return rows.drop(columns="modality").assign(rank=rows["rank"] + 1)


# Tables -------------------------------------------------------------------------------------------


def of_datasets(scores: ModalityScores) -> Table:
    """How many samples of each data set count, and in how many each modality occurs."""
    rows = [
        [name, written(n), *(written(scores.n_with[name][m]) for m in scores.occurring)]
        for name, n in scores.n_samples.items()
    ]
    heads = ["data set", "samples", *(f"with {modality}" for modality in scores.occurring)]
    return Table(heads, rows, [False, *(True for _ in heads[1:])])


def of_layers(found: Mined) -> Table:
    """How many neurons of each set are in each layer, and in all."""
    frame = found.layers.table()
    rows = [[written(value.item()) for value in row] for row in frame.to_numpy()]
    rows.append(["all", *(written(len(neurons)) for neurons in found.selected.values())])
    return Table([str(name) for name in frame], rows, [True] * frame.shape[1])


def of_overlap(overlap: Overlap) -> Table:
    """What each pair of sets shares."""
    heads = {"n_a": "neurons of a", "n_b": "neurons of b", "expected_shared": "shared by chance"}
    heads["expected_in_layers"] = "shared by chance, drawn by layer"
    left_out = ("expected_jaccard", "jaccard_in_layers")
    rows = [
        {heads.get(str(name), str(name)): row[name] for name in row if name not in left_out}
        for row in overlap.frame.to_dict("records")
    ]
    return of_frame(pd.DataFrame(rows))


def of_specificity(specificity: Matrix) -> Table:
    """What each task loses without each set, and without random neurons."""
    rows = []
    for row in specificity.frame.to_dict("records"):
        low, high = row["clean"] - row["control_high"], row["clean"] - row["control_low"]
        is_single = row["n_samples"] < 2
        error = NOTHING if is_single else f"{100 * row['standard_error']:.1f}"
        rows.append(
            [
                *(str(row["masked"]), str(row["task"]), written(row["n_neurons"])),
                *(percent(row["clean"]), percent(row["performance"])),
                f"{100 * row['drop']:.1f}".replace("-", "−"),
                error,
                percent(row["clean"] - row["control"]),
                words.between(low, high),
                written(words.is_beyond(row)),
            ]
        )
    heads = ["masked", "task", "neurons", "clean", "without them", "points lost"]
    heads += ["standard error", "without random ones", "range over seeds", "more than random"]
    return Table(heads, rows, [False, False, *(True for _ in range(7)), False])


def _parameters(found: Mined, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the results depend on."""
    scores = found.scores.parameters
    about = {name: value for name, value in scores.items() if name not in options}
    return {**options, "scores": about}

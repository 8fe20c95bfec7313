"""Whose neurons are whose: each set masked, each task measured, beside random neurons.

Neurons are a task's (a modality's, a category's) only if other tasks do without them better than
its own does, and if random neurons of the same layers do less harm. Reviewers of MINER (arXiv
2410.04819) asked for that; own and cross effects are how culture-sensitive neurons are judged
(arXiv 2510.24942).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from vlm_lens.edits import Edit, Set, Value
from vlm_lens.experiments.measure import CLEAN, Grades, Tasks, measure
from vlm_lens.keywords import keywords_of, refuse_unknown
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.controls import random_neurons
from vlm_lens.pages.words import listing
from vlm_lens.plots.cells import Cell, cells
from vlm_lens.plots.layout import shown
from vlm_lens.results import Section, provenance
from vlm_lens.results.table import TableResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

_HOW = (
    "A task needs neurons if it loses more without them than without every random set, by more "
    "than two standard errors."
)
_SHARES = "Shares of right answers that are lost; the random sets are in the same layers."
_COLUMNS = (
    *("masked", "task", "n_neurons", "clean", "performance", "drop", "standard_error"),
    *("control", "control_low", "control_high", "excess", "n_samples"),
)


ERRORS = 2
"""A difference counts that is larger than so many standard errors."""


def is_beyond(row: Mapping[Any, Any]) -> bool:
    """Whether a row of `Matrix` is a loss that random neurons do not explain.

    Example:
        >>> row = {"drop": 0.5, "control_high": 0.1, "standard_error": 0.05}
        >>> is_beyond(row), is_beyond({**row, "control_high": 0.45})
        (True, False)
    """
    return row["drop"] - max(row["control_high"], 0.0) > ERRORS * row["standard_error"]


@dataclass(frozen=True, eq=False, repr=False)
class Matrix(TableResult):
    """What masking each set of neurons does to each task.

    Each row is one set and one task: ``masked``, ``task``, ``n_neurons``, ``clean`` performance
    (mean grade), ``performance`` with the set masked, ``drop`` and its ``standard_error`` over
    samples, ``control``, ``control_low`` and ``control_high`` (mean, least and largest drop with as
    many random neurons of the same layers, over seeds), ``excess`` (drop beyond that mean) and
    ``n_samples``.
    """

    KIND = "matrix"
    TITLE: ClassVar[str] = "What is lost without each set of neurons"

    def wide(self, value: str = "excess") -> pd.DataFrame:
        """One of the columns, with a row for each set and a column for each task.

        Raises:
            KeyError: There is no such column.
        """
        wide = self.frame.pivot(index="masked", columns="task", values=value)
        rows, columns = (list(dict.fromkeys(self.frame[name])) for name in ("masked", "task"))
        return wide.loc[rows, columns]

    def own_and_cross(self) -> pd.DataFrame:
        """What each set does to the task of its name, and to the others.

        Returns:
            A row for each set that a task is named like: ``masked``, the ``own`` task's drop, the
            mean drop of the others (``cross``, NaN where there are none), their difference
            (``gap``), and the same of random neurons (``random gap``).
        """
        rows = []
        for name, frame in self.frame.groupby("masked", sort=False):
            tasks = frame.set_index("task")[["drop", "control"]]
            if name in tasks.index:
                own, cross = tasks.loc[name], tasks.drop(index=name).mean()
                gap = own - cross
                rows.append((name, own["drop"], cross["drop"], gap["drop"], gap["control"]))
        return pd.DataFrame(rows, columns=["masked", "own", "cross", "gap", "random gap"])

    def sections(self) -> list[Section]:
        """What is lost, whose that is, and every number."""
        own = self.own_and_cross()
        said = [_on_own(self.frame)] if len(own) else []
        drawn = Section(title=self.title, sentences=said, figure=self.plot(), aside=_HOW)
        compared = [Section(title="Own and other tasks", table=own, aside=_SHARES)]
        every = Section(title="Every set and task", table=self.table(), shown="folded")
        return [drawn, *compared[: len(own)], every]

    def plot(self) -> go.Figure:
        """By how many points each task falls when a set of neurons is masked.

        Each cell also says how far random neurons of the same layers let it fall (mean, and range
        over seeds). It is bold where the set does more harm than every one of them.
        """
        entries = [
            Cell(row["masked"], row["task"], 100 * row["drop"], _text(row), _hint(row))
            for row in self.frame.to_dict("records")
        ]
        sizes = dict(zip(self.frame["masked"], self.frame["n_neurons"], strict=True))
        return cells(
            entries,
            rows={name: f"{name} ({n:,})" for name, n in sizes.items()},
            columns={task: task for task in self.frame["task"]},
            title=self.TITLE,
            row_title="masked neurons",
            column_title="task",
            colour_title="points lost",
            remarks=[
                "Change of the mean grade in points; below it, that with as many random neurons of "
                "the same layers (mean, range over seeds). Bold: beyond all of these.",
                *self.notes,
            ],
        )


def matrix(
    model: HookedVLM,
    selected: Mapping[str, NeuronSet],
    tasks: Tasks,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    sizes: Mapping[str, int] | None = None,
    value: Value = "zero",
    **options: Any,
) -> Matrix:
    """Masks each set of neurons, and measures every task.

    Args:
        model: The model.
        selected: Sets of neurons by name.
        tasks: Samples with answers, by task: at best one for each set, of its name.
        seeds: Of the random controls, at least one.
        sizes: The number of neurons at each hook point; by default what the sets know.
        value: What masked neurons become: "zero", "min" or a number.
        **options: Of `measure`: how answers are graded, the batch size, ...

    Raises:
        ValueError: There are no sets or no seeds, or as for `measure`.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> names = [f"blocks.{layer}.mlp.hook_act" for layer in range(6)]
        >>> half = NeuronSet.from_indices(
        ...     {name: range(192) for name in names}, sizes=dict.fromkeys(names, 384))
        >>> found = matrix(model, {"half": half}, {"image": load_samples("shapes-llava", n=4)})
        >>> float(found.wide("clean").loc["half", "image"])
        1.0
    """
    refuse_unknown("matrix", options, [*keywords_of(matrix), *keywords_of(measure)])
    if not selected or not seeds:
        raise ValueError(
            f"expected at least one set of neurons and one seed, got {len(selected)} and "
            f"{len(seeds)}"
        )
    edits: dict[str, Edit] = {}
    for name, neurons in selected.items():
        edits[name] = Set(neurons, value)
        for seed in seeds:
            control = random_neurons(neurons, seed=seed, sizes=sizes)
            edits[_control(name, seed)] = Set(control, value)
    grades = measure(model, tasks, edits, **options)
    rows = [
        (name, task, len(neurons), *_row(grades, name, task, seeds))
        for name, neurons in selected.items()
        for task in tasks
    ]
    parameters = {"value": value, "seeds": list(seeds), "provenance": provenance(model)}
    return Matrix(pd.DataFrame(rows, columns=list(_COLUMNS)), parameters, grades.notes)


def _row(grades: Grades, name: str, task: str, seeds: Sequence[int]) -> tuple[float | int, ...]:
    drop, error = grades.drop(name, task)
    controls = [grades.drop(_control(name, seed), task)[0] for seed in seeds]
    mean = sum(controls) / len(controls)
    clean, masked = (grades.of[which][task] for which in (CLEAN, name))
    performances = float(clean.mean()), float(masked.mean())
    extremes = min(controls), max(controls)
    return (*performances, drop, error, mean, *extremes, drop - mean, len(clean))


def _control(name: str, seed: int) -> str:
    return f"{name}, random {seed}"


# What is said ---------------------------------------------------------------------------------


def _on_own(frame: pd.DataFrame) -> str:
    """Which sets their own tasks cannot do without."""
    own = [row for row in frame.to_dict("records") if row["masked"] == row["task"]]
    needed = [f"{row['masked']} ({_points(-row['drop'])} points)" for row in own if is_beyond(row)]
    if not needed:
        return "No task needs the neurons of its own set more than random ones."
    return f"Their own neurons are needed by {listing(needed)}."


# What the cells say -----------------------------------------------------------------------------


def _text(cell: dict[Any, Any]) -> str:
    change, low, high = (_points(-cell[n]) for n in ("drop", "control_high", "control_low"))
    beyond = cell["drop"] > max(cell["control_high"], 0)
    spread = "" if low == high else f" [{low}, {high}]"
    first = f"<b>{change}</b>" if beyond else change
    return f"{first}<br>random {_points(-cell['control'])}{spread}"


def _hint(cell: dict[Any, Any]) -> str:
    return "<br>".join(
        [
            f"<b>{shown(cell['masked'])} masked, {shown(cell['task'])}</b>",
            f"{100 * cell['clean']:.1f} → {100 * cell['performance']:.1f}",
            f"{_points(-cell['drop'])} ± {100 * cell['standard_error']:.1f} (standard error)",
            f"beyond random: {_points(-cell['excess'])}",
            f"{cell['n_neurons']:,} neurons, {cell['n_samples']:,} samples",
        ]
    )


def _points(share: float) -> str:
    """A change in points, with a true minus sign."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text

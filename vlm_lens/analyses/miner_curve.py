"""How well tasks are done with 0.1% to 10% of a model's neurons masked, modality by modality.

The masking experiment of MINER (arXiv 2410.04819), with random neurons of the same layers beside
it; see `vlm_lens.analyses.miner` for how neurons are selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from vlm_lens.analyses.miner import Strategy, select
from vlm_lens.analyses.miner_scores import WEIGHTS, ModalityScores, Weights, checked_weights
from vlm_lens.edits import Edit, Set, Value
from vlm_lens.experiments import CLEAN, Grades, measure
from vlm_lens.experiments.measure import Tasks, standard_error
from vlm_lens.keywords import keywords_of, refuse_unknown
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.controls import random_neurons
from vlm_lens.plots.lines import Panel, lines, lines_of
from vlm_lens.results import provenance
from vlm_lens.results.table import TableResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

RATIOS = (0.001, 0.005, 0.01, 0.015, 0.02, 0.05, 0.1)
"""The authors' shares of neurons."""

ALL = "all"
"""The name of all modalities' neurons together."""

NO_SEED = -1
_COLUMNS = ("task", "ratio", "masked", "control", "seed", "n_neurons")


@dataclass(frozen=True, eq=False, repr=False)
class MaskingCurve(TableResult):
    """How well tasks are done with growing shares of neurons masked.

    Each row is one masking and one task: ``task``, ``ratio`` (0: nothing is masked), ``masked`` (a
    modality, `ALL`, or "none"), ``control`` (whether these are random neurons of the same layers),
    ``seed`` of a control (-1: none), ``n_neurons`` in the set, ``performance`` (mean grade),
    ``standard_error`` over samples and ``n_samples``.
    """

    KIND = "masking_curve"
    TITLE: ClassVar[str] = "Performance with modality-specific neurons masked"

    @property
    def title(self) -> str:
        """Says so where all but the selected neurons were masked."""
        others = self.parameters.get("complement")
        return "Performance with all but modality-specific neurons masked" if others else self.TITLE

    def table(self) -> pd.DataFrame:
        """A row for each task and ratio, a column for what is masked; of controls, the mean."""
        is_clean = self.frame["masked"] == CLEAN
        masked = self.frame[~is_clean].copy()
        masked["masked"] = [
            f"{name} (random)" if is_control else name
            for name, is_control in zip(masked["masked"], masked["control"], strict=True)
        ]
        wide = masked.pivot_table(
            index=["task", "ratio"], columns="masked", values="performance", sort=False
        )
        wide = wide.reset_index().rename_axis(columns=None)
        clean = dict(zip(*(self.frame[is_clean][n] for n in ("task", "performance")), strict=True))
        wide.insert(2, "clean", [clean[task] for task in wide["task"]])
        return wide

    def plot(self) -> go.Figure:
        """A panel for each task: performance over the share of masked neurons.

        Dotted lines of the same colour are random neurons of the same layers, on the mean over
        seeds.

        Raises:
            ValueError: Nothing was masked.
        """
        panels = []
        for task, frame in self.frame.groupby("task", sort=False):
            rows = frame.to_dict("records")
            ratios = [row["ratio"] for row in rows if row["ratio"] > 0]
            if not ratios:
                raise ValueError("expected measurements with neurons masked, got none")
            clean = next(row["performance"] for row in rows if row["ratio"] == 0)
            own, control = (
                lines_of(
                    [row for row in rows if row["ratio"] > 0 and row["control"] == which],
                    *("ratio", "performance"),
                    by=["masked"],
                )
                for which in (False, True)
            )
            ends = [min(ratios), max(ratios)]
            panels.append(Panel(str(task), {"clean": (ends, [clean, clean]), **own}, control, 1))
        return lines(
            panels,
            title=self.title,
            x_title="share of all neurons that is selected",
            log_x=True,
            remarks=["Dotted: as many random neurons of the same layers.", *self.notes],
        )


def masking_curve(
    model: HookedVLM,
    scores: ModalityScores,
    tasks: Tasks,
    *,
    ratios: Sequence[int | float] = RATIOS,
    strategy: Strategy = "LA_MU",
    weights: Weights = WEIGHTS,
    modalities: Sequence[str] | None = None,
    value: Value = "zero",
    complement: bool = False,
    seeds: Sequence[int] = (0, 1, 2),
    **options: Any,
) -> MaskingCurve:
    """Measures tasks with growing shares of neurons masked.

    Args:
        model: The model.
        scores: Of `miner.score`.
        tasks: Samples with answers, by task; see `vlm_lens.experiments.measure`.
        ratios: Shares of all neurons; see `miner.select`. One so small that no neuron is selected
            is left out, and the notes say so.
        strategy: How neurons are selected.
        weights: Of the metrics.
        modalities: Whose neurons are masked; by default each one's, and `ALL` of them.
        value: What masked neurons become: "zero", "min" (both the authors') or a number.
        complement: Whether all neurons but the selected ones are masked.
        seeds: Of the random controls; none for no control.
        **options: Of `vlm_lens.experiments.measure`: how answers are graded, the batch size, ...

    Raises:
        ValueError: An argument is not what it has to be.

    Example:
        >>> from vlm_lens import load_samples
        >>> from vlm_lens.analyses import miner
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=4)
        >>> scores = miner.score(model, samples)
        >>> curve = masking_curve(model, scores, {"image": samples}, ratios=[0.02], seeds=[0])
        >>> curve.table().columns.tolist()[2:6]
        ['clean', 'text', 'text (random)', 'special']
    """
    refuse_unknown("masking_curve", options, [*keywords_of(masking_curve), *keywords_of(measure)])
    if strategy == "random":
        raise ValueError("random neurons are the control here: choose another strategy")
    wanted = [*scores.occurring, ALL] if modalities is None else list(modalities)
    if unknown := [name for name in wanted if name not in (*scores.occurring, ALL)]:
        raise ValueError(f"expected modalities of {[*scores.occurring, ALL]}, got {unknown[0]!r}")
    selected, notes = _selected(scores, ratios, strategy, weights)
    rows: dict[str, tuple[Any, ...]] = {CLEAN: (0.0, CLEAN, False, NO_SEED, 0)}
    edits: dict[str, Edit] = {}
    for (ratio, name), neurons in selected.items():
        for seed in (NO_SEED, *seeds) if name in wanted else ():
            chosen = neurons if seed == NO_SEED else random_neurons(neurons, seed=seed)
            key = f"{ratio} {name} {seed}"
            rows[key] = (ratio, name, seed != NO_SEED, seed, len(chosen))
            edits[key] = Set(chosen, value, complement, tuple(scores))
    grades = measure(model, tasks, edits, **options)
    parameters = {
        "strategy": strategy,
        "weights": checked_weights(weights),
        "value": value,
        "complement": complement,
        "scores": scores.parameters,
        "provenance": provenance(model),
    }
    return MaskingCurve(_frame(rows, grades), parameters, (*notes, *grades.notes))


def _selected(
    scores: ModalityScores, ratios: Sequence[int | float], strategy: Strategy, weights: Weights
) -> tuple[dict[tuple[int | float, str], NeuronSet], list[str]]:
    """The neurons by ratio and modality, `ALL` included; and notes about ratios too small."""
    selected: dict[tuple[int | float, str], NeuronSet] = {}
    notes = []
    for ratio in ratios:
        try:
            found = select(scores, ratio=ratio, strategy=strategy, weights=weights)
        except ValueError as error:
            if not 0 < ratio <= 1:
                raise
            notes.append(f"nothing is masked: {error}")
            continue
        found[ALL] = reduce(or_, found.values())
        selected |= {(ratio, name): neurons for name, neurons in found.items()}
    return selected, notes


def _frame(rows: dict[str, tuple[Any, ...]], grades: Grades) -> pd.DataFrame:
    found = []
    for task in grades.of[CLEAN]:
        for key, row in rows.items():
            values = grades.of[key][task]
            found.append((task, *row, float(values.mean()), standard_error(values), len(values)))
    columns = [*_COLUMNS, "performance", "standard_error", "n_samples"]
    return pd.DataFrame(found, columns=columns)

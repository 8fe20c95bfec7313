"""What MINER found, in sentences: made from its numbers, whatever they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_lens.analyses.miner_curve import ALL
from vlm_lens.experiments.matrix import ERRORS, is_beyond
from vlm_lens.neurons import NeuronSet
from vlm_lens.pages.words import between, listing, percent

if TYPE_CHECKING:
    from vlm_lens.analyses.miner_curve import MaskingCurve
    from vlm_lens.analyses.miner_scores import ModalityScores
    from vlm_lens.experiments import Matrix
    from vlm_lens.experiments.sets import Overlap

Sets = Mapping[str, NeuronSet]

_RULE = (
    f"what counts is a loss beyond that with every random set by more than {ERRORS} standard errors"
)
_NOTHING = "Nothing was masked: the ratios are too small."
_ALPHA = 0.05


# Whether a loss counts ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One masking of a curve beside its controls.

    Attributes:
        row: Of the curve.
        random: The performances with as many random neurons, of which there is one at least.
        error: The largest standard error of all these.
    """

    row: Mapping[Any, Any]
    random: list[float]
    error: float

    @property
    def is_worse(self) -> bool:
        """Whether it is below all controls by more than chance."""
        return min(self.random) - self.row["performance"] > ERRORS * self.error

    @property
    def is_better(self) -> bool:
        """Whether it is above all controls by more than chance."""
        return self.row["performance"] - max(self.random) > ERRORS * self.error


def cases_of(curve: MaskingCurve) -> list[Case]:
    """All maskings of a curve that have controls."""
    rows = curve.frame.to_dict("records")
    controls: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
    for row in rows:
        if row["control"]:
            controls.setdefault(_which(row), []).append(row)
    found = []
    for row in rows:
        its = controls.get(_which(row), [])
        if not row["control"] and its:
            error = max(one["standard_error"] for one in (row, *its))
            found.append(Case(row, [one["performance"] for one in its], error))
    return found


def _which(row: Mapping[Any, Any]) -> tuple[Any, ...]:
    return row["task"], row["ratio"], row["masked"]


# The parts of the page ----------------------------------------------------------------------------


def on_selection(
    scores: ModalityScores, selected: Sets, *, strategy: str, ratio: float
) -> list[str]:
    """How many neurons each modality has, and in which layer most of them are."""
    sites = list(scores)
    counts = [f"{len(neurons):,} for {name}" for name, neurons in selected.items()]
    said = [
        f"Of {sum(scores.sizes.values()):,} neurons at {len(sites)} hook point"
        f"{'s' * (len(sites) != 1)} {strategy} selects {listing(counts)}, with a ratio of "
        f"{percent(ratio)}."
    ]
    most = []
    for name, neurons in selected.items():
        by_layer = neurons.count_by("layer")
        if neurons and len(sites) > 1:
            layer = max(by_layer, key=lambda one: by_layer[one])
            most.append(f"{layer} for {name} ({by_layer[layer]:,} of {len(neurons):,})")
    if most:
        said.append(f"The layer with the most of them is {listing(most)}.")
    if empty := [name for name, neurons in selected.items() if not neurons]:
        said.append(f"No neuron was selected for {listing(empty)}, of which nothing more is said.")
    return said


def on_specificity(scores: ModalityScores, selected: Sets, specificity: Matrix) -> list[str]:
    """What masking each set does, and whether that tells modalities apart."""
    rows = specificity.frame.to_dict("records")
    clean = {row["task"]: row["clean"] for row in rows}
    answered = listing([f"{percent(value)} of {task}" for task, value in clean.items()])
    said = [f"As it is, the model answers {answered} in the very words that are expected."]
    if nothing := [task for task, value in clean.items() if value == 0]:
        said.append(f"In {listing(nothing)} there is nothing to lose.")
    beyond = [row for row in rows if is_beyond(row)]
    said += [_loss(row) for row in beyond]
    if not beyond:
        said.append(
            f"No set does any task more harm than random neurons of the same layers ({_RULE}): "
            "that the model needs these neurons is not seen here."
        )
    elif len(beyond) < len(rows):
        said.append(
            f"In the other {len(rows) - len(beyond)} of {len(rows)} cases random neurons of the "
            f"same layers do as much harm ({_RULE})."
        )
    return [*said, *_own(scores, selected, beyond)]


def _loss(row: Mapping[Any, Any]) -> str:
    low, high = row["clean"] - row["control_high"], row["clean"] - row["control_low"]
    return (
        f"Without the {row['n_neurons']:,} {row['masked']} neurons {row['task']} goes from "
        f"{percent(row['clean'])} to {percent(row['performance'])}, without as many random ones "
        f"to {between(low, high)}."
    )


def _own(scores: ModalityScores, selected: Sets, beyond: Iterable[Mapping[Any, Any]]) -> list[str]:
    """Whether sets do harm where their modality is absent, and which sets cannot be asked that."""
    said, everywhere = [], []
    for name in (name for name, neurons in selected.items() if neurons):
        absent = [task for task, counts in scores.n_with.items() if not counts.get(name, 1)]
        harmed = [row["task"] for row in beyond if row["masked"] == name]
        if not absent:
            everywhere.append(name)
        elif elsewhere := [task for task in harmed if task in absent]:
            said.append(
                f"There is no {name} in {listing(elsewhere)}, so these neurons are not {name}'s "
                "alone."
            )
        elif harmed:
            said.append(
                f"In {listing(absent)}, where there is no {name}, they are not missed, as one "
                f"expects of neurons that are specific to it."
            )
    if everywhere:
        said.append(
            f"Every data set has {listing(everywhere)}: whether such neurons serve "
            f"{'that' if len(everywhere) == 1 else 'one of these'} alone cannot be seen on them."
        )
    return said


def on_overlap(overlap: Overlap) -> list[str]:
    """Which sets share more neurons than chance would have them share."""
    rows = overlap.frame.to_dict("records")
    shared = [row for row in rows if row["p_value"] < _ALPHA / len(rows)]
    if not shared:
        return ["No two sets share more neurons than chance would have them share."]
    pairs = [
        f"{row['a']} and {row['b']} share {row['shared']:,} of {row['n_a']:,} and {row['n_b']:,} "
        f"neurons ({row['expected_shared']:.2g} by chance, p = {row['p_value']:.1g})"
        for row in shared
    ]
    return [f"{'; '.join(pairs)}. What is shared is not one modality's own."]


def on_curve(curve: MaskingCurve) -> list[str]:
    """From which ratio on masking does harm, and what all selected neurons do at the largest."""
    cases = cases_of(curve)
    if not cases:
        return [_NOTHING]
    worse = [case for case in cases if case.is_worse]
    most = max(case.row["ratio"] for case in cases)
    if not worse:
        return [
            f"In none of {len(cases):,} cases, with ratios up to {percent(most)}, do selected "
            f"neurons do more harm than random ones ({_RULE})."
        ]
    first = min(worse, key=lambda case: case.row["ratio"])
    row = first.row
    return [
        f"In {len(worse):,} of {len(cases):,} cases selected neurons do more harm than random "
        f"ones ({_RULE}); first with a ratio of {percent(row['ratio'])}, where without the "
        f"{row['n_neurons']:,} neurons of {row['masked']} {row['task']} is at "
        f"{percent(row['performance'])}, and without random ones at "
        f"{between(min(first.random), max(first.random))}.",
        _at_most(cases, most, "masked"),
    ]


def on_complement(complement: MaskingCurve) -> list[str]:
    """What the selected neurons can do alone."""
    cases = cases_of(complement)
    if not cases:
        return [_NOTHING]
    n_better = sum(case.is_better for case in cases)
    return [
        f"In {n_better:,} of {len(cases):,} cases the model does better with the selected neurons "
        f"alone than with as many random ones, by more than {ERRORS} standard errors.",
        _at_most(cases, max(case.row["ratio"] for case in cases), "left, all others masked"),
    ]


def _at_most(cases: Iterable[Case], ratio: float, how: str) -> str:
    """What is right with all modalities' neurons masked, or with only them left."""
    parts = [
        f"{case.row['task']} is at {percent(case.row['performance'])} (with random ones "
        f"{between(min(case.random), max(case.random))})"
        for case in cases
        if case.row["ratio"] == ratio and case.row["masked"] == ALL
    ]
    return f"With all that a ratio of {percent(ratio)} selects {how}, {listing(parts)}."

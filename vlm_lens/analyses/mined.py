"""What MINER found: the neurons of each modality, and what is lost without them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from vlm_lens.analyses import miner_words as words
from vlm_lens.analyses.miner_curve import MaskingCurve
from vlm_lens.analyses.miner_scores import ModalityScores
from vlm_lens.experiments import Matrix
from vlm_lens.experiments.matrix import is_beyond
from vlm_lens.experiments.sets import Overlap, by_layer, overlap
from vlm_lens.neurons import NeuronSet
from vlm_lens.pages.words import between, listing, percent
from vlm_lens.results import Result, Section

_BEST = 10
_UNMEASURED = (
    "Selected neurons have the largest importance for a modality. Whether the model needs them for "
    "it, and not for the others, was not measured: see --controls, which masks them, and random "
    "ones beside them."
)
_SCORE = "The score is the weighted sum of the five metrics, each from 0 to 1 in its layer."


@dataclass(frozen=True, eq=False, repr=False)
class Mined(Result):
    """What MINER found.

    Attributes:
        scores: How important each neuron is for each modality.
        selected: The neurons of each modality.
        ratio: The share of neurons that was asked for.
        strategy: How they were selected.
        weights: Of the metrics.
        specificity: What tasks lose without each set; None if that was not measured.
        curve: What they lose without more and more neurons, likewise.
        complement: What they lose without all others, likewise.
    """

    KIND = "miner"

    scores: ModalityScores
    selected: dict[str, NeuronSet]
    ratio: float
    strategy: str
    weights: tuple[float, ...]
    specificity: Matrix | None = None
    curve: MaskingCurve | None = None
    complement: MaskingCurve | None = None

    @cached_property
    def overlap(self) -> Overlap | None:
        """What the sets share; None where there is only one."""
        some = {modality: neurons for modality, neurons in self.selected.items() if neurons}
        return overlap(some, sizes=self.scores.sizes) if len(some) > 1 else None

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that the scores depend on."""
        return self.scores.parameters

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know, each thing once."""
        of = (self.scores, self.specificity, self.curve, self.complement)
        notes = [note for one in of if one is not None for note in one.notes]
        return tuple(dict.fromkeys([*notes, *_mixed(self.scores)]))

    def summary(self) -> str:
        """How many neurons were selected."""
        n, total = sum(map(len, self.selected.values())), sum(self.scores.sizes.values())
        return f"MINER selects {n:,} of {total:,} neurons for {listing(list(self.selected))}"

    def table(self) -> pd.DataFrame:
        """How many neurons of each set are in each layer, and in all."""
        layers = by_layer(self.selected, sizes=self.scores.sizes).table().astype(object)
        layers.loc[len(layers)] = ["all", *map(len, self.selected.values())]
        return layers

    def headline(self) -> str:
        """What was selected; where it was masked, whether that did harm."""
        if self.specificity is None:
            return self.summary()
        rows = self.specificity.frame.to_dict("records")
        harmful = list(dict.fromkeys(row["masked"] for row in rows if is_beyond(row)))
        what = f"MINER's {percent(self.ratio)} of the neurons"
        if not harmful:
            return f"Masking {what} does no more harm than masking random ones"
        whose = "" if len(harmful) == len(self.selected) else f" those for {listing(harmful)} among"
        return f"Masking{whose} {what} does more harm than masking random ones"

    def sections(self) -> list[Section]:
        """The sets, what they share, and what is lost without them."""
        made = [self._asked(), self._selection()]
        if (shared := self.overlap) is not None:
            title, said = "What the sets share", words.on_overlap(shared)
            table = of_overlap(shared)
            made.append(Section(title=title, sentences=said, figure=shared.plot(), table=table))
        if (lost := self.specificity) is not None:
            title, said = (
                "Whether they are that modality's",
                words.on_specificity(self.scores, self.selected, lost),
            )
            table = of_specificity(lost)
            made.append(Section(title=title, sentences=said, figure=lost.plot(), table=table))
        if self.curve is not None:
            title, said = "With more and more masked", words.on_curve(self.curve)
            made += _of_curve(title, said, self.curve)
        if self.complement is not None:
            title, said = "With all others masked", words.on_complement(self.complement)
            made += _of_curve(title, said, self.complement)
        return [*made, *self._best()]

    def _asked(self) -> Section:
        """How many samples of each data set count, and in how many each modality occurs."""
        scores = self.scores
        rows = [
            {"data set": name, "samples": n}
            | {f"with {one}": scores.n_with[name][one] for one in scores.occurring}
            for name, n in scores.n_samples.items()
        ]
        said = [_UNMEASURED] if self.curve is None else words.on_curve(self.curve)[:1]
        return Section(sentences=said, table=pd.DataFrame(rows))

    def _selection(self) -> Section:
        """How many neurons each modality has, and in which layer most of them are."""
        figure = self.scores.plot(weights=list(self.weights), selected=self.selected)
        how = {"strategy": self.strategy, "ratio": self.ratio}
        said = words.on_selection(self.scores, self.selected, **how)
        return Section(title="What was selected", sentences=said, figure=figure, table=self.table())

    def _best(self) -> list[Section]:
        best = self.scores.to_dataframe(_BEST, weights=list(self.weights))
        best = best.assign(rank=best["rank"] + 1)
        return [
            Section(
                title=f"The best neurons of {modality}",
                table=rows.drop(columns="modality"),
                aside=_SCORE,
                shown="page",
            )
            for modality, rows in best.groupby("modality", sort=False)
        ]


def _mixed(scores: ModalityScores) -> list[str]:
    """What averages over samples with and without a modality are."""
    return [
        f"{scores.n_samples[name] - counts[modality]:,} of {scores.n_samples[name]:,} samples of "
        f"{name!r} have no {modality}, and count as 0 for it: as a data set of their own they "
        "would not"
        for name, counts in scores.n_with.items()
        for modality in scores.occurring
        if 0 < counts[modality] < scores.n_samples[name]
    ]


def _of_curve(title: str, said: list[str], curve: MaskingCurve) -> list[Section]:
    """A curve, drawn if something was masked."""
    figure = curve.plot() if any(curve.frame["ratio"].tolist()) else None
    return [
        Section(title=title, sentences=said, figure=figure),
        Section(table=curve.table(), shown="folded"),
    ]


# As tables ----------------------------------------------------------------------------------------


def of_overlap(shared: Overlap) -> pd.DataFrame:
    """What each pair of sets shares."""
    heads = {"n_a": "neurons of a", "n_b": "neurons of b", "expected_shared": "shared by chance"}
    heads["expected_in_layers"] = "shared by chance, drawn by layer"
    left_out = ["expected_jaccard", "jaccard_in_layers"]
    return shared.frame.drop(columns=left_out).rename(columns=heads)


def of_specificity(specificity: Matrix) -> pd.DataFrame:
    """What each task loses without each set, and without random neurons."""
    rows = []
    for row in specificity.frame.to_dict("records"):
        low, high = row["clean"] - row["control_high"], row["clean"] - row["control_low"]
        is_single = row["n_samples"] < 2
        rows.append(
            {
                "masked": row["masked"],
                "task": row["task"],
                "neurons": row["n_neurons"],
                "clean": percent(row["clean"]),
                "without them": percent(row["performance"]),
                "points lost": round(100 * row["drop"], 1),
                "standard error": None if is_single else round(100 * row["standard_error"], 1),
                "without random ones": percent(row["clean"] - row["control"]),
                "range over seeds": between(low, high),
                "more than random": is_beyond(row),
            }
        )
    return pd.DataFrame(rows)

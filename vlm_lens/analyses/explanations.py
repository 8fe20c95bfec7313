"""Explanations of neurons, with the scores of what can be predicted from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlm_lens.analyses.explaining import files
from vlm_lens.analyses.explaining.explained import ExplainedNeuron
from vlm_lens.analyses.explaining.scoring import better_than_chance, p_of_mean, p_values
from vlm_lens.analyses.explaining.sheet import ExemplarSheet, exemplar_sheet
from vlm_lens.data import Sample
from vlm_lens.neurons import Neuron
from vlm_lens.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class Explanations(Result, Mapping[Neuron, ExplainedNeuron]):
    """Explanations of neurons and their scores; a mapping from neurons.

    The score of a neuron is Pearson's correlation of predicted and true activations over the
    patches and tokens of samples that the explanation was not made from: those in which the neuron
    is most active, and random ones. What it would be by chance is what the explanations of other
    neurons score on the same samples.

    Attributes:
        neurons: The neurons, in the order in which they were given.
        shuffled: By row, each neuron's score with the explanation of another one; NaN where that
            could not be simulated.
        alpha: The false discovery rate of `better`.
        skipped: Neurons that could not be explained or scored, and why.
        parameters: With what this was made, as JSON can hold it.
        notes: What a reader must know.
    """

    KIND = "explanations"
    DIGITS = ".3g"

    neurons: tuple[ExplainedNeuron, ...]
    shuffled: Float[np.ndarray, "times neuron"]
    alpha: int | float = 0.05
    skipped: Mapping[Neuron, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shuffled.ndim != 2 or self.shuffled.shape[1] != len(self.neurons):
            raise ValueError(
                f"expected a column of shuffled scores for each of {len(self.neurons)} neurons, "
                f"got shape {self.shuffled.shape}"
            )

    def __getitem__(self, neuron: Neuron) -> ExplainedNeuron:
        for one in self.neurons:
            if one.neuron == neuron:
                return one
        raise KeyError(
            f"{neuron} was not explained: {self.skipped.get(neuron, 'it was not asked for')}"
        )

    def __iter__(self) -> Iterator[Neuron]:
        return (one.neuron for one in self.neurons)

    def __len__(self) -> int:
        return len(self.neurons)

    # What was found ---------------------------------------------------------------------------

    @property
    def scores(self) -> Float[np.ndarray, " neuron"]:
        """Each neuron's Pearson correlation."""
        return np.array([one.score.pearson for one in self.neurons], dtype=np.float64)

    @property
    def p_values(self) -> Float[np.ndarray, " neuron"]:
        """How likely each score is with the explanation of another neuron; 1 without others."""
        return p_values(self.scores, self.shuffled)

    @property
    def better(self) -> Bool[np.ndarray, " neuron"]:
        """Which neurons are explained better than chance, after Benjamini and Hochberg."""
        return better_than_chance(self.p_values, alpha=self.alpha)

    @property
    def share_better(self) -> float:
        """The share of the neurons that are explained better than chance; 0 without any."""
        return float(self.better.mean()) if len(self) else 0.0

    @property
    def p_of_mean(self) -> float:
        """How likely a mean score this high is where explanations are dealt out at random."""
        return p_of_mean(self.scores, self.shuffled) if len(self) else 1.0

    def to_dataframe(self) -> pd.DataFrame:
        """One row a neuron, best first.

        Returns:
            The neuron (name, component, layer, index), the explanation, its score (Pearson),
            Spearman's correlation, the scores over patches, over tokens and over random samples
            alone (<NA> where there are none), the mean score with explanations of other neurons
            ("shuffled", <NA> without others), the difference, the p-value, and whether it is
            explained better than chance.
        """
        columns = ["neuron", "component", "layer", "index", "explanation", "score", "spearman"]
        columns += ["image", "text", "random", "shuffled", "difference", "p", "better"]
        rows = [
            (
                *(str(one.neuron), one.neuron.component, one.neuron.layer, one.neuron.index),
                *(one.explanation.text, one.score.pearson, one.score.spearman),
                *(one.score.image, one.score.text, one.score.random),
                *(chance, None if chance is None else one.score.pearson - chance, p, better),
            )
            for one, chance, p, better in zip(
                self.neurons, self._chance(), self.p_values, self.better, strict=True
            )
        ]
        frame = pd.DataFrame(rows, columns=columns)
        maybe = ("image", "text", "random", "shuffled", "difference")
        frame = frame.astype({"layer": "Int64", **dict.fromkeys(maybe, "Float64")})
        return frame.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)

    def _chance(self) -> list[float | None]:
        known = [column[np.isfinite(column)] for column in self.shuffled.T]
        return [float(column.mean()) if len(column) else None for column in known]

    def table(self) -> pd.DataFrame:
        """Means by layer: how many neurons, their score, what is chance, and the share better."""
        frame = self.to_dataframe()
        grouped = frame.groupby(["component", "layer"], dropna=False, sort=True)
        found = grouped.agg(
            neurons=("neuron", "size"),
            score=("score", "mean"),
            spearman=("spearman", "mean"),
            shuffled=("shuffled", "mean"),
            difference=("difference", "mean"),
            better=("better", "mean"),
        )
        return found.reset_index()

    def plot(self, neuron: Neuron | None = None, *, n: int = 4) -> ExemplarSheet:
        """The exemplar sheet of a neuron, by default of the best explained one.

        Raises:
            KeyError: The neuron was not explained.
            ValueError: No neuron was.
        """
        if not self.neurons:
            raise ValueError(f"no neuron was explained: {next(iter(self.notes), 'none was given')}")
        best = self.neurons[int(self.scores.argmax())]
        one = best if neuron is None else self[neuron]
        place = self.neurons.index(one)
        chance, remark = self._chance()[place], f"score {one.score.pearson:.2f}"
        if chance is not None:
            p = self.p_values[place]
            remark += f"; with explanations of other neurons {chance:.2f} (p = {p:.2g})"
        return exemplar_sheet(
            one.exemplars,
            held_out=one.held_out,
            explanation=one.explanation.text or "no explanation was found",
            remark=remark,
            n=n,
        )

    def summary(self) -> str:
        """What was found, in a line."""
        if not self.neurons:
            return f"no neuron explained, {len(self.skipped)} skipped"
        known = [chance for chance in self._chance() if chance is not None]
        chance = f", {np.mean(known):.3f} with those of others" if known else ""
        share = f"; {self.share_better:.1%} better than chance" if known else ""
        p = f" (mean: p = {self.p_of_mean:.2g})" if known else ""
        skipped = f"; {len(self.skipped)} skipped" if self.skipped else ""
        return (
            f"{len(self)} neurons, mean score {self.scores.mean():.3f}{chance}{share}{p}{skipped}"
        )

    def shown(self) -> pd.DataFrame:
        """The ten best explanations."""
        columns = ["neuron", "explanation", "score", "shuffled", "p"]
        return self.to_dataframe().loc[:9, columns]

    # On disk ----------------------------------------------------------------------------------

    def packed(self, *, shown: int = 4) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Fields that JSON can hold, and tensors. Images are not written.

        Args:
            shown: How many top exemplars of each neuron are kept, of each half; the scores stay
                those of all.
        """
        fields, tensors = files.packed(self.neurons, shown=shown)
        fields |= {
            "alpha": self.alpha,
            "skipped": {str(neuron): why for neuron, why in self.skipped.items()},
            "parameters": dict(self.parameters),
            "notes": list(self.notes),
        }
        return fields, {**tensors, "shuffled": torch.from_numpy(self.shuffled.copy())}

    @classmethod
    def unpacked(
        cls,
        written: dict[str, Any],
        tensors: dict[str, Tensor],
        *,
        samples: Sequence[Sample] | None = None,
    ) -> Explanations:
        """What `packed` took apart.

        Args:
            written: The fields.
            tensors: The tensors.
            samples: Those that were explained, for their images; without them, sheets show the
                activations without what they are about.

        Raises:
            ValueError: The samples are others.
        """
        return cls(
            neurons=files.unpacked(written, tensors, samples),
            shuffled=tensors["shuffled"].numpy(),
            alpha=float(written["alpha"]),
            skipped={Neuron.parse(neuron): why for neuron, why in written["skipped"].items()},
            parameters=written["parameters"],
            notes=tuple(written["notes"]),
        )

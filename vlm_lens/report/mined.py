"""What `vlm-lens miner` found, all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_lens.analyses.miner_curve import MaskingCurve
    from vlm_lens.analyses.miner_scores import ModalityScores
    from vlm_lens.experiments import Matrix
    from vlm_lens.experiments.sets import LayerCounts, Overlap
    from vlm_lens.neurons import NeuronSet


@dataclass(frozen=True, eq=False)
class Mined:
    """What MINER found.

    Attributes:
        model_name: What the model was loaded as.
        scores: How important each neuron is for each modality.
        selected: The neurons of each modality.
        ratio: The share of neurons that was asked for.
        strategy: How they were selected.
        weights: Of the metrics.
        layers: How many are in each layer.
        overlap: What the sets share; None where there is only one.
        specificity: What tasks lose without each set; None if that was not measured.
        curve: What they lose without more and more neurons, likewise.
        complement: What they lose without all others, likewise.
    """

    model_name: str
    scores: ModalityScores
    selected: dict[str, NeuronSet]
    ratio: int | float
    strategy: str
    weights: Sequence[int | float]
    layers: LayerCounts
    overlap: Overlap | None
    specificity: Matrix | None = None
    curve: MaskingCurve | None = None
    complement: MaskingCurve | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know, each thing once."""
        of = (self.scores, self.specificity, self.curve, self.complement)
        notes = [note for one in of if one is not None for note in one.notes]
        return tuple(dict.fromkeys([*notes, *_mixed(self.scores)]))


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

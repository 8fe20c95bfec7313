"""One neuron with what was said of it."""

from __future__ import annotations

from dataclasses import dataclass

from vlm_lens.analyses.exemplars import Exemplars
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.scoring import Score
from vlm_lens.neurons import Neuron


@dataclass(frozen=True, eq=False, repr=False)
class ExplainedNeuron:
    """One neuron, what was said of it and how well that predicts it.

    Attributes:
        explanation: What it reacts to.
        score: How well the explanation predicts held-out samples.
        exemplars: What it was explained from.
        held_out: What it was tested on, with predictions.
    """

    explanation: Explanation
    score: Score
    exemplars: Exemplars
    held_out: Exemplars

    @property
    def neuron(self) -> Neuron:
        """Which one."""
        return self.exemplars.neuron

    def __repr__(self) -> str:
        said = self.explanation.text
        return f"ExplainedNeuron({self.neuron}: {said!r}, {self.score.pearson:.3f})"

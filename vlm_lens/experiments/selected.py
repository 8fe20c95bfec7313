"""Sets of neurons that a method selects for groups, and what is lost without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from vlm_lens.edits import Value
from vlm_lens.experiments.matrix import Matrix, matrix
from vlm_lens.experiments.measure import Tasks
from vlm_lens.experiments.sets import by_layer, overlap
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.passes import Run
from vlm_lens.results import Result, Section
from vlm_lens.results.scores import Scores

_UNJUDGED = "Whether a group needs its neurons was not measured."


@dataclass(frozen=True, eq=False, repr=False)
class Selected(Result):
    """The neurons of each group, and what is lost without them.

    Attributes:
        scores: How much each neuron is each group's.
        sets: The neurons of each group, best first.
        parameters: Everything that they depend on, as JSON can hold it.
        notes: What a reader must know.
        effects: What each group's questions lose without each set, if that was measured.
    """

    KIND = "selected"

    scores: Scores
    sets: dict[str, NeuronSet]
    parameters: dict[str, Any]
    notes: tuple[str, ...] = ()
    effects: Matrix | None = None

    def summary(self) -> str:
        """How many neurons of how many groups."""
        most = max(map(len, self.sets.values()), default=0)
        groups = f"each of {len(self.sets)} groups"
        return f"{self.scores.method} selects up to {most:,} neurons for {groups}"

    def table(self) -> pd.DataFrame:
        """A row for each group: its neurons, and the best of these."""
        rows = [
            (group, len(neurons), str(neurons[0]) if neurons else None)
            for group, neurons in self.sets.items()
        ]
        return pd.DataFrame(rows, columns=["group", "neurons", "best neuron"])

    def sections(self) -> list[Section]:
        """The sets, whether they are their groups' own, and where they are."""
        judged = self.effects.sections() if self.effects else [Section(sentences=[_UNJUDGED])]
        where = by_layer(self._some, sizes=self.scores.sizes).sections() if self._some else []
        are_several = len(self._some) > 1
        shared = overlap(self._some, sizes=self.scores.sizes).sections() if are_several else []
        return [Section(table=self.table()), *judged, *where, *shared]

    def judged_on(
        self, model: HookedVLM, tasks: Tasks, *, seeds: Sequence[int], value: Value, run: Run
    ) -> Selected:
        """The same, with what tasks lose without each set: at best a task for each group.

        Args:
            model: The model.
            tasks: Samples with answers, that neurons were not chosen from.
            seeds: Of the random controls.
            value: What masked neurons become.
            run: How it is done; what is measured is kept as "effects".

        Raises:
            ValueError: As for `matrix`.
        """

        def measured(run: Run) -> Matrix:
            masking: dict[str, Any] = {"seeds": seeds, "value": value, "sizes": self.scores.sizes}
            return matrix(model, self._some, tasks, **masking, **run.asking)

        effects = run.kept("effects", Matrix, measured)
        return replace(self, effects=effects, notes=(*self.notes, *effects.notes))

    @property
    def _some(self) -> dict[str, NeuronSet]:
        """The groups that have neurons."""
        return {group: neurons for group, neurons in self.sets.items() if neurons}

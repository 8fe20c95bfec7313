"""Searches for critical neurons of which tables are made: one after another, all alike."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_lens.analyses import can
from vlm_lens.analyses.collapse import best, check_options
from vlm_lens.analyses.comparison import compared_at
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.data import Sample
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.results.scores import Scores

Ranking = Scores | NeuronSet
"""Scores, or neurons best first with known sizes."""


class Searches:
    """Searches by label; the k at which the first one ends is measured in all others too.

    Args:
        model: The model, unless a search is about another.
        samples: What it is measured on, unless a search is about others.
        options: Of `can.find_critical`. With a checkpoint, each search has a folder inside it.

    Raises:
        TypeError: There is no such option.
    """

    def __init__(
        self, model: HookedVLM, samples: Sequence[Sample], options: dict[str, Any]
    ) -> None:
        check_options(options)
        self._model, self._samples, self._options = model, samples, dict(options)
        self.results: dict[str, CriticalNeurons] = {}

    @property
    def first(self) -> CriticalNeurons:
        """The result that the others are compared with."""
        return next(iter(self.results.values()))

    def add(
        self,
        label: str,
        ranking: Ranking,
        *,
        names: Collection[str] | None = None,
        model: HookedVLM | None = None,
        samples: Sequence[Sample] | None = None,
        noted: dict[str, Any] | None = None,
        notes: Sequence[str] = (),
        **changes: Any,
    ) -> None:
        """Searches, unless this is not the first search and there is nothing to mask.

        Args:
            label: What the search is called.
            ranking: What is masked.
            names: At which hook points; by default all that are ranked.
            model: Another model.
            samples: Other samples.
            noted: Further parameters of the result.
            notes: Further notes of the result.
            **changes: To the options.

        Raises:
            ValueError: This is the first search, and there is nothing to mask.

        Warns:
            UserWarning: There is nothing to mask.
        """
        if names is None:
            pass
        elif isinstance(ranking, NeuronSet):
            ranking = NeuronSet((n for n in ranking if n.name in names), sizes=ranking.sizes)
        else:
            chosen = {name: values for name, values in ranking.items() if name in names}
            ranking = Scores(chosen, ranking.method, ranking.parameters)
        options = {**self._options, **changes}
        if not best(ranking, max_k=options.get("max_k")):
            if not self.results:
                raise ValueError(
                    f"expected neurons to mask, got none with a score above 0: {ranking!r}"
                )
            warnings.warn(f"{label!r} is left out: no neuron there has a score", stacklevel=3)
            return
        if options.get("checkpoint") is not None:
            options["checkpoint"] = Path(options["checkpoint"]) / f"{len(self.results):02}"
        options["parameters"] = {**(options.get("parameters") or {}), **(noted or {})}
        found = can.find_critical(
            self._model if model is None else model,
            self._samples if samples is None else samples,
            ranking,
            **options,
        )
        if not self.results:
            also_at = (*self._options.get("also_at", ()), compared_at(found))
            self._options["also_at"] = also_at
        self.results[label] = replace(found, method=label, notes=(*notes, *found.notes))


def names_of(ranking: Ranking) -> list[str]:
    """The hook points that a ranking is over."""
    return list(ranking.names) if isinstance(ranking, NeuronSet) else list(ranking)

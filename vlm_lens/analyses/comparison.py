"""Several searches for critical neurons, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result, Mapping[str, CriticalNeurons]):
    """Searches by label; a mapping.

    Attributes:
        title: What is compared.
        results: The searches; the first is what the others are compared with.

    Raises:
        ValueError: There is none.

    Example:
        >>> from vlm_lens.masking.measurement import Measurement, Stages
        >>> from vlm_lens.neurons import NeuronSet
        >>> def found(k, indices):
        ...     ranking = NeuronSet.from_indices({"blocks.1.hook_mlp_out": indices})
        ...     curve = tuple(Measurement(i, {"perplexity": 2.0}, i == k) for i in range(3))
        ...     return CriticalNeurons(method="", k=k, ranking=ranking, curve=curve,
        ...                            stages=Stages(None, k, ""), is_monotone=True)
        >>> both = Comparison("demo", {"CAN": found(1, [7, 2]), "random": found(None, [5, 7])})
        >>> both
        Comparison(demo; k* of CAN: 1, random: none)
        >>> both.table()[["search", "k*", "shared at 1"]]
           search    k*  shared at 1
        0     CAN     1            1
        1  random  <NA>            0
    """

    KIND = "comparison"
    DIGITS = ".4g"

    title: str
    results: dict[str, CriticalNeurons]

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError(f"expected at least one result to compare, got none: {self.title}")

    def __getitem__(self, label: str) -> CriticalNeurons:
        return self.results[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    @property
    def k(self) -> int:
        """Where the table compares: the first result's k*, or the most neurons it masked."""
        return compared_at(next(iter(self.results.values())))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of each search, its label in front."""
        return tuple(
            f"{label}: {note}" for label, result in self.results.items() for note in result.notes
        )

    def table(self) -> pd.DataFrame:
        """One row a search; columns "... at k" are about the first result's k*, see `k`.

        Returns:
            The label ("search"), k* (<NA>: no collapse), where degradation begins, how many neurons
            were ranked, whether the curve is monotone; how many of its critical neurons the first
            search found too ("shared"), and of its first k neurons; whether the model has collapsed
            without these, and the metrics there (NaN where they were not measured, such as where
            fewer are ranked).
        """
        results = list(self.results.values())
        metrics = dict.fromkeys(name for result in results for name in result.metrics)
        metrics.pop("perplexity", None)  # of which there is the ratio
        rows = [
            {"search": label, **self._row(result, list(metrics))}
            for label, result in self.results.items()
        ]
        whole = dict.fromkeys(("k*", "degradation"), "Int64")
        return pd.DataFrame(rows).astype({**whole, f"collapsed at {self.k}": "boolean"})

    def _row(self, result: CriticalNeurons, metrics: list[str]) -> dict[str, Any]:
        first, k = next(iter(self.results.values())), self.k
        measured = next((m for m in result.curve if m.k == k), None)
        values = {} if measured is None else measured.metrics
        return {
            "k*": result.k,
            "degradation": result.stages.onset,
            "ranked": len(result.ranking),
            "monotone": result.is_monotone,
            "shared": len(result.neurons & first.neurons),
            f"shared at {k}": len(result.ranking[:k] & first.ranking[:k]),
            f"collapsed at {k}": None if measured is None else measured.collapsed,
            **{f"{name} at {k}": values.get(name, math.nan) for name in metrics},
        }

    def plot(self) -> go.Figure:
        """The collapse curves of all searches in one figure."""
        (label, first), *others = self.results.items()
        return replace(first, method=label).plot(others=dict(others))

    def summary(self) -> str:
        """What is compared, and k* of each search, in a line."""
        found = ", ".join(
            f"{label}: {'none' if result.k is None else f'{result.k:,}'}"
            for label, result in self.results.items()
        )
        return f"{self.title}; k* of {found}"


def compared_at(first: CriticalNeurons) -> int:
    """The k at which others are compared with a result: its k*, or the most neurons it masked."""
    return first.curve[-1].k if first.k is None else first.k

"""A score for every neuron: what methods that rank neurons return."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.neuron import split_name
from vlm_lens.results import Result


@dataclass(frozen=True, eq=False, repr=False)
class NeuronScores(Result, Mapping[str, Float[Tensor, " _"]]):
    """Scores of neurons by hook name, higher for more important ones; a mapping.

    A score that is NaN could not be measured, and is never ranked.

    Attributes:
        scores: By hook name, one score for each neuron there (float32, on the CPU).
        method: What the scores are of.
        parameters: Everything that they depend on, as JSON can hold it.

    Example:
        >>> scores = NeuronScores({"blocks.0.hook_mlp_out": torch.tensor([0.0, 3.0, 2.0])}, "demo")
        >>> [str(neuron) for neuron in scores.top(2)]
        ['blocks.0.hook_mlp_out[1]', 'blocks.0.hook_mlp_out[2]']
        >>> scores
        NeuronScores(demo: 3 neurons at 1 hook point)
    """

    KIND = "scores"
    DIGITS = ".6g"

    scores: dict[str, Float[Tensor, " _"]]
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Float[Tensor, " d"]:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    # Ranking ----------------------------------------------------------------------------------

    def top(self, k: int) -> NeuronSet:
        """The `k` neurons with the highest scores, best first.

        Equal scores rank by hook name (layer 2 before 10), then by index.

        Raises:
            ValueError: There are fewer than `k` neurons with a score.
        """
        n_scored = sum(int((~values.isnan()).sum()) for values in self.scores.values())
        if k > n_scored:
            raise ValueError(
                f"asked for the top {k}, but only {n_scored} neurons have a score that is a "
                f"number: {self!r}."
            )
        unmeasured_last = {
            name: values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
            for name, values in self.scores.items()
        }
        return NeuronSet.from_scores(unmeasured_last, k=k)

    def ranking(self, k: int | None = None) -> NeuronSet:
        """The neurons with a positive score, best first, and at most `k` of them.

        A neuron with a score of 0 is left out: nothing speaks for it, and where it would stand
        among others like it is chance.
        """
        n_positive = sum(int((values > 0).sum()) for values in self.scores.values())
        if not n_positive:
            return NeuronSet()
        return self.top(n_positive if k is None else min(k, n_positive))

    def filter(
        self,
        *,
        component: str | None = None,
        layer: int | Collection[int] | None = None,
        site: str | None = None,
    ) -> NeuronScores:
        """The scores of a component, layer (or any of several layers) and site."""
        layers = [layer] if isinstance(layer, int) else layer
        kept = {}
        for name, values in self.scores.items():
            its_component, its_layer, its_site = split_name(name)
            fits_layer = layers is None or its_layer in layers
            if component in (None, its_component) and fits_layer and site in (None, its_site):
                kept[name] = values
        return NeuronScores(kept, self.method, self.parameters)

    # Looking at it ----------------------------------------------------------------------------

    def to_dataframe(self, k: int = 10) -> pd.DataFrame:
        """The best neurons, at most `k`: rank, component, layer, site, index, name and score."""
        best = self.ranking(k)
        scores = [float(self.scores[neuron.name][neuron.index]) for neuron in best]
        return best.to_dataframe().assign(score=scores)

    def table(self) -> pd.DataFrame:
        """The ten best neurons."""
        return self.to_dataframe()

    def summary(self) -> str:
        """How many neurons have a score, in a line."""
        n_neurons = sum(map(len, self.scores.values()))
        n_missing = sum(int(values.isnan().sum()) for values in self.scores.values())
        missing = f"; {n_missing} without a score" if n_missing else ""
        plural = "s" * (len(self) != 1)
        return f"{self.method}: {n_neurons} neurons at {len(self)} hook point{plural}{missing}"

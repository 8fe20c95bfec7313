"""A score for every neuron: what methods that rank neurons return."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.neuron import split_name
from vlm_lens.results.result import Result


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Result, Mapping[str, Float[Tensor, "..."]]):
    """Scores of neurons by hook name, higher for more important ones; a mapping.

    A neuron may have several, one for each combination of labels of some axes: of a group, a
    modality, a metric. A score that is NaN could not be measured, and is never ranked.

    Attributes:
        scores: By hook name, scores for each neuron there (float32, on the CPU).
        method: What the scores are of.
        parameters: Everything that they depend on, as JSON can hold it.
        axes: The labels of each axis before the last, which is the neurons', in order.
        notes: What a reader must know.

    Example:
        >>> scores = Scores({"blocks.0.hook_mlp_out": torch.tensor([0.0, 3.0, 2.0])}, "demo")
        >>> [str(neuron) for neuron in scores.top(2)]
        ['blocks.0.hook_mlp_out[1]', 'blocks.0.hook_mlp_out[2]']
        >>> scores
        Scores(demo: 3 neurons at 1 hook point)

        With an axis, a set of neurons for each of its labels:

        >>> values = {"blocks.0.hook_mlp_out": torch.tensor([[0.0, 3.0], [2.0, 1.0]])}
        >>> scores = Scores(values, "demo", axes={"group": ("color", "shape")})
        >>> {group: neurons[0].index for group, neurons in scores.each("group", k=1).items()}
        {'color': 1, 'shape': 0}
    """

    KIND = "scores"
    DIGITS = ".6g"
    COLUMN: ClassVar[str] = "score"
    """What tables call the scores."""

    scores: dict[str, Float[Tensor, "*axes _d"]]
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(map(len, self.axes.values()))
        for name, values in self.scores.items():
            if tuple(values.shape[:-1]) != shape:
                raise ValueError(
                    f"expected scores [{', '.join([*self.axes, 'neuron'])}] of sizes "
                    f"{list(shape)} and any number of neurons, got {tuple(values.shape)} at "
                    f"{name!r}"
                )

    def __getitem__(self, name: str) -> Float[Tensor, "*axes d"]:
        return self.scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def sizes(self) -> dict[str, int]:
        """The number of neurons at each hook point."""
        return {name: values.shape[-1] for name, values in self.scores.items()}

    # Axes -------------------------------------------------------------------------------------

    def of(self, **labels: str) -> Scores:
        """Those of one label of some axes, which are no axes any more.

        Raises:
            ValueError: There is no such axis, or no such label on it.
        """
        for axis, label in labels.items():
            if label not in self.axes.get(axis, ()):
                raise ValueError(
                    f"expected labels of { ({a: list(of) for a, of in self.axes.items()}) }, got "
                    f"{axis}={label!r}"
                )
        places = tuple(
            of.index(labels[axis]) if axis in labels else slice(None)
            for axis, of in self.axes.items()
        )
        left = {axis: of for axis, of in self.axes.items() if axis not in labels}
        return self._plain({name: values[places] for name, values in self.scores.items()}, left)

    def map(self, f: Callable[[Float[Tensor, "*axes d"]], Float[Tensor, "*axes d"]]) -> Scores:
        """What a function makes of each hook point's scores; axes stay."""
        return self._plain({name: f(values) for name, values in self.scores.items()}, self.axes)

    def each(self, axis: str, **rule: Any) -> dict[str, NeuronSet]:
        """The best neurons for each label of the only axis, as `top` chooses them.

        Raises:
            ValueError: There is no such axis, or another one beside it.
        """
        if axis not in self.axes:
            raise ValueError(f"expected an axis of {list(self.axes)}, got {axis!r}")
        return {label: self.of(**{axis: label}).top(**rule) for label in self.axes[axis]}

    def stacked(self) -> Float[Tensor, "*axes site d"]:
        """All hook points' scores, side by side.

        Raises:
            ValueError: Hook points have different numbers of neurons.
        """
        if len(set(self.sizes.values())) > 1:
            raise ValueError(
                f"expected as many neurons at every hook point, got {self.sizes}: take those of "
                "one component and site"
            )
        return torch.stack(list(self.scores.values()), dim=-2)

    def _plain(self, scores: dict[str, Tensor], axes: dict[str, tuple[str, ...]]) -> Scores:
        return Scores(scores, self.method, self.parameters, axes, self.notes)

    # Ranking ----------------------------------------------------------------------------------

    def top(
        self,
        k: int | None = None,
        *,
        ratio: int | float | None = None,
        threshold: int | float | None = None,
    ) -> NeuronSet:
        """The neurons with the highest scores, best first: one of `k`, a share, or a least score.

        Equal scores rank by hook name (layer 2 before 10), then by index.

        Raises:
            ValueError: There are fewer than `k` neurons with a score, not exactly one rule is
                given, or neurons have several scores.
        """
        if self.axes:
            axis, labels = next(iter(self.axes.items()))
            raise ValueError(
                f"neurons have a score for each {' and '.join(self.axes)}: choose one first, such "
                f"as scores.of({axis}={labels[0]!r})"
            )
        n_scored = sum(int((~values.isnan()).sum()) for values in self.scores.values())
        if k is not None and k > n_scored:
            raise ValueError(
                f"asked for the top {k}, but only {n_scored} neurons have a score that is a "
                f"number: {self!r}."
            )
        unmeasured_last = {
            name: values.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
            for name, values in self.scores.items()
        }
        return NeuronSet.from_scores(unmeasured_last, k=k, ratio=ratio, threshold=threshold)

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
    ) -> Scores:
        """The scores of a component, layer (or any of several layers) and site."""
        layers = [layer] if isinstance(layer, int) else layer
        kept = {}
        for name, values in self.scores.items():
            of_component, of_layer, of_site = split_name(name)
            fits_layer = layers is None or of_layer in layers
            if component in (None, of_component) and fits_layer and site in (None, of_site):
                kept[name] = values
        return self._plain(kept, self.axes)

    # Looking at it ----------------------------------------------------------------------------

    def to_dataframe(self, k: int = 10) -> pd.DataFrame:
        """The best neurons, at most `k`: rank, component, layer, site, index, name and score.

        With axes, the best of each combination of labels, which come first.
        """
        if not self.axes:
            best = self.ranking(k)
            scores = [float(self.scores[neuron.name][neuron.index]) for neuron in best]
            return best.to_dataframe().assign(**{self.COLUMN: scores})
        axis, labels = next(iter(self.axes.items()))
        frames = [self.of(**{axis: label}).to_dataframe(k) for label in labels]
        for frame, label in zip(frames, labels, strict=True):
            frame.insert(0, axis, label)
        return pd.concat(frames, ignore_index=True)

    def table(self) -> pd.DataFrame:
        """The ten best neurons."""
        return self.to_dataframe()

    def summary(self) -> str:
        """How many neurons have a score, in a line."""
        n_missing = sum(int(values.isnan().sum()) for values in self.scores.values())
        missing = f"; {n_missing} without a score" if n_missing else ""
        plural = "s" * (len(self) != 1)
        by = "".join(f" by {axis}" for axis in self.axes)
        n_neurons = sum(self.sizes.values())
        return f"{self.method}{by}: {n_neurons} neurons at {len(self)} hook point{plural}{missing}"

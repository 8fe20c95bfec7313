"""How important each neuron is for each modality: what MINER's first three stages give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.neurons.checks import finite_number
from vlm_lens.neurons.neuron import split_name
from vlm_lens.plots.lines import Panel, lines, lines_of
from vlm_lens.results.scores import Scores

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.neurons import NeuronSet

Metric = Literal["prob", "mean", "max", "attn_k", "attn_q"]
METRICS: tuple[Metric, ...] = ("prob", "mean", "max", "attn_k", "attn_q")
WEIGHTS = (0.0, 0.25, 0.25, 0.5, 0.0)
"""The authors' default weights of the metrics, in the order of `METRICS`."""

Split = Literal["prompt", "special_text_as_one", "special_text_separate"]
SPLITS: dict[Split, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "special_text_as_one": ("special_text", "image", "video", "audio"),
    "special_text_separate": ("text", "special", "image", "video", "audio"),
}
"""The modalities that each of the authors' ways to split a prompt tells apart."""

Weights = Sequence[int | float] | Mapping[Metric, int | float]
"""One weight for each of `METRICS`; in a mapping, those that are missing are 0."""


@dataclass(frozen=True, eq=False, repr=False)
class ModalityScores(Scores):
    """MINER's importance scores, over all samples and data sets: axes "metric" and "modality".

    They are from 0 to 1; 0 where a modality never occurs.

    Attributes:
        n_samples: How many samples of each data set count.
        n_with: In how many of these each modality has positions, by data set and modality.

    Example:
        >>> scores = ModalityScores(
        ...     {"blocks.0.mlp.hook_act": torch.tensor([[0.2, 1.0], [1.0, 0.0]]).expand(5, 2, 2)},
        ...     "MINER",
        ...     axes={"metric": METRICS, "modality": ("text", "image")},
        ...     n_samples={"demo": 3},
        ...     n_with={"demo": {"text": 3, "image": 2}},
        ... )
        >>> scores
        ModalityScores(text, image: 2 neurons at 1 hook point; 3 samples)
        >>> scores.to_dataframe(1)[["modality", "index", "score"]].values.tolist()
        [['text', 1, 1.0], ['image', 0, 1.0]]
    """

    KIND = "modality_scores"
    DIGITS = ".3f"

    n_samples: dict[str, int] = field(default_factory=dict)
    n_with: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def modalities(self) -> tuple[str, ...]:
        """All that the split tells apart."""
        return self.axes["modality"]

    @property
    def occurring(self) -> tuple[str, ...]:
        """The modalities that some sample has."""
        found = self.n_with.values()
        return tuple(m for m in self.modalities if any(counts[m] for counts in found))

    @property
    def importance(self) -> Float[Tensor, "metric modality layer neuron"]:
        """The scores of all layers side by side."""
        return self.stacked()

    def weighted(self, weights: Weights = WEIGHTS) -> Float[Tensor, "modality layer neuron"]:
        """The metrics as one: their weighted sum, for each modality of `occurring`.

        Raises:
            ValueError: There is not one weight >= 0 for each metric, or all are 0.
        """
        importance = self.importance
        vector = torch.tensor(checked_weights(weights), dtype=importance.dtype)
        rows = [self.modalities.index(modality) for modality in self.occurring]
        return torch.einsum("i,imln->mln", vector, importance[:, rows])

    # Looking at it ----------------------------------------------------------------------------

    def to_dataframe(self, k: int = 10, *, weights: Weights = WEIGHTS) -> pd.DataFrame:
        """The `k` best neurons of each modality.

        Returns:
            Columns ``modality``, ``rank``, ``layer``, ``index``, ``name``, ``score`` (the weighted
            sum) and one for each metric.
        """
        importance, sites = self.importance, list(self)
        n = importance.shape[-1]
        rows = []
        for modality, scores in zip(self.occurring, self.weighted(weights), strict=True):
            best = scores.flatten().argsort(descending=True, stable=True)[:k].tolist()
            place = self.modalities.index(modality)
            for rank, (layer, index) in enumerate(divmod(flat, n) for flat in best):
                name, each = sites[layer], importance[:, place, layer, index].tolist()
                found = split_name(name)[1], index, name, float(scores[layer, index])
                rows.append((modality, rank, *found, *each))
        columns = ["modality", "rank", "layer", "index", "name", "score", *METRICS]
        return pd.DataFrame(rows, columns=columns)

    def by_layer(self, weights: Weights = WEIGHTS) -> pd.DataFrame:
        """How important the neurons of each layer are for each modality.

        Returns:
            One row a modality and layer: ``modality``, ``layer``, ``name``, and over the layer's
            neurons the ``mean``, the 99th percentile (``p99``) and the ``max`` of the weighted sum.
        """
        rows = [
            {
                "modality": modality,
                "layer": split_name(name)[1],
                "name": name,
                "mean": float(values.mean()),
                "p99": float(values.double().quantile(0.99)),
                "max": float(values.max()),
            }
            for modality, layers in zip(self.occurring, self.weighted(weights), strict=True)
            for name, values in zip(self, layers, strict=True)
        ]
        return pd.DataFrame(rows, columns=["modality", "layer", "name", "mean", "p99", "max"])

    def plot(
        self,
        *,
        weights: Weights = WEIGHTS,
        selected: Mapping[str, NeuronSet] | None = None,
    ) -> go.Figure:
        """Each modality's importance over the layers: of most neurons, and of the best.

        Args:
            weights: Of the metrics.
            selected: Neurons by modality, of `miner.select`: how many are in each layer.

        Raises:
            ValueError: The weights are not what they have to be.
        """
        rows = self.by_layer(weights).to_dict("records")
        mean, best = (lines_of(rows, "layer", n, by=["modality"]) for n in ("mean", "p99"))
        panels = [
            Panel("importance, mean over neurons", mean),
            Panel("importance, 99th percentile", best),
        ]
        if selected is not None:
            layers = [int(layer) for layer in dict.fromkeys(row["layer"] for row in rows)]
            counts = {m: neurons.count_by("layer") for m, neurons in selected.items()}
            of = {m: (layers, [n.get(layer, 0) for layer in layers]) for m, n in counts.items()}
            panels.append(Panel("selected neurons", of))
        return lines(
            panels,
            title="Importance of neurons by layer and modality",
            remarks=[f"{sum(self.n_samples.values()):,} samples", *self.notes],
        )

    def table(self) -> pd.DataFrame:
        """The ten best neurons of each modality."""
        return self.to_dataframe()

    def summary(self) -> str:
        """Of which modalities, neurons and samples, in a line."""
        n_neurons, plural = sum(self.sizes.values()), "s" * (len(self) != 1)
        return (
            f"{', '.join(self.occurring)}: {n_neurons:,} neurons at {len(self)} hook "
            f"point{plural}; {sum(self.n_samples.values()):,} samples"
        )


def checked_weights(weights: Weights) -> list[float]:
    """One weight for each metric.

    Raises:
        ValueError: They are not, a metric is unknown, a weight is below 0, or all are 0.

    Example:
        >>> checked_weights({"max": 1})
        [0.0, 0.0, 1.0, 0.0, 0.0]
    """
    given = list(weights)
    if isinstance(weights, Mapping):
        if unknown := [name for name in weights if name not in METRICS]:
            raise ValueError(f"unknown metric {unknown[0]!r}: expected some of {list(METRICS)}")
        given = [weights.get(name, 0.0) for name in METRICS]
    values = [finite_number("a weight", value) for value in given]
    if len(values) != len(METRICS) or min(values) < 0 or not any(values):
        raise ValueError(
            f"expected a weight >= 0 for each of {list(METRICS)}, not all of them 0, got {weights}"
        )
    return values

"""How important the neurons of each layer are for each modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vlm_lens.neurons import NeuronSet
from vlm_lens.plots.line_panels import Line, Panel, line_panels

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from vlm_lens.analyses.miner_scores import ModalityScores, Weights


def importance_by_layer(
    scores: ModalityScores,
    *,
    weights: Weights | None = None,
    selected: Mapping[str, NeuronSet] | None = None,
) -> go.Figure:
    """Draws each modality's importance over the layers: of most neurons, and of the best.

    Args:
        scores: Of `miner.score`.
        weights: Of the metrics; by default the authors'.
        selected: Neurons by modality, of `miner.select`: how many are in each layer is drawn too.

    Raises:
        ValueError: The weights are not what they have to be.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.analyses import miner
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> scores = miner.score(model, load_samples("shapes-llava", n=2))
        >>> [trace.name for trace in importance_by_layer(scores).data[:3]]
        ['text', 'special', 'image']
    """
    frame = scores.by_layer() if weights is None else scores.by_layer(weights)
    of_modality = dict(iter(frame.groupby("modality", sort=False)))

    def lines(column: str) -> dict[str, Line]:
        return {
            str(name): (rows["layer"].tolist(), rows[column].tolist())
            for name, rows in of_modality.items()
        }

    panels = [
        Panel("importance, mean over neurons", lines("mean")),
        Panel("importance, 99th percentile", lines("p99")),
    ]
    if selected is not None:
        panels.append(Panel("selected neurons", _counts(scores, selected)))
    n_samples = sum(scores.n_samples.values())
    return line_panels(
        panels,
        title="Importance of neurons by layer and modality",
        remarks=[f"{n_samples:,} samples", *scores.notes],
    )


def _counts(scores: ModalityScores, selected: Mapping[str, NeuronSet]) -> dict[str, Line]:
    counts = {}
    for modality, neurons in selected.items():
        by_layer = neurons.count_by("layer")
        layers = [int(layer) for layer in dict.fromkeys(scores.by_layer()["layer"])]
        counts[modality] = (layers, [by_layer.get(layer, 0) for layer in layers])
    return counts

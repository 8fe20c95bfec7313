"""Which modality the model's neurons are for: what the demo tells of MINER."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from vlm_lens.analyses import miner
from vlm_lens.experiments.sets import by_layer
from vlm_lens.pages.tables import Table, of_frame
from vlm_lens.pages.words import listing
from vlm_lens.plots.page import as_json

if TYPE_CHECKING:
    from vlm_lens.analyses.miner_scores import ModalityScores
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM
    from vlm_lens.neurons import NeuronSet

RATIO = 0.02
"""The share of all neurons that is selected: the paper's."""


@dataclass(frozen=True, eq=False)
class Modalities:
    """What MINER found.

    Attributes:
        scores: How important each neuron is for each modality.
        selected: The best neurons of each modality.
    """

    scores: ModalityScores
    selected: dict[str, NeuronSet]


@dataclass(frozen=True, eq=False)
class ModalitiesView:
    """The same, ready for a page.

    Attributes:
        sentences: What was found.
        counts: How many of each modality's neurons are in each layer.
        figure: Importance by layer and modality, as plotly's JSON.
        n_samples: How many prompts were read.
    """

    sentences: list[str]
    counts: Table
    figure: Markup
    n_samples: int


def study_modalities(
    model: HookedVLM,
    samples: Sequence[Sample],
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> Modalities:
    """Scores the language model's neurons for each modality, and selects the best (MINER).

    Args:
        model: The model.
        samples: The prompts that are read.
        on_step: Is told what happens next.
    """
    on_step("scoring how important each neuron is for each modality")
    scores = miner.score(model, samples)
    return Modalities(scores, miner.select(scores, ratio=RATIO))


def view_of(found: Modalities) -> ModalitiesView:
    """Makes figure, table and sentences of what was found."""
    return ModalitiesView(
        sentences=_sentences(found),
        counts=of_frame(by_layer(found.selected, sizes=found.scores.sizes).table()),
        figure=as_json(found.scores.plot(selected=found.selected)),
        n_samples=sum(found.scores.n_samples.values()),
    )


def _sentences(found: Modalities) -> list[str]:
    total = sum(found.scores.sizes.values())
    counts = [f"{len(some):,} for {modality}" for modality, some in found.selected.items()]
    most = []
    for modality, some in found.selected.items():
        [(layer, n)] = Counter(some.count_by("layer")).most_common(1)
        most.append(f"{layer} for {modality} ({n:,})")
    times = Counter(neuron for some in found.selected.values() for neuron in some)
    shared = sum(n > 1 for n in times.values())
    are = "neuron is" if shared == 1 else "neurons are"
    return [
        f"{RATIO:.0%} of the language model's {total:,} neurons are selected, as many for each "
        f"modality: {listing(counts)}.",
        f"The layer with most of them is {listing(most)}; {shared or 'no'} {are} in more than one "
        "set.",
    ]

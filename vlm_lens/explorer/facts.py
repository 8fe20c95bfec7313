"""What results say about one neuron, in short lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.results.scores import Scores
from vlm_lens.statistics import NeuronStatistics
from vlm_lens.statistics.moments import Moments

if TYPE_CHECKING:
    from vlm_lens.analyses.critical import CriticalNeurons
    from vlm_lens.analyses.explanations import Explanations
    from vlm_lens.analyses.miner_scores import ModalityScores
    from vlm_lens.analyses.neuron_types_result import NeuronTypes


@dataclass(frozen=True)
class Fact:
    """One line about a neuron.

    Attributes:
        label: What it is about: "type", "explanation".
        text: What is known.
        detail: How sure it is, smaller.
    """

    label: str
    text: str
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Results:
    """What was found out about neurons elsewhere; None where it was not.

    Attributes:
        statistics: Of `vlm_lens.statistics.collect`.
        types: Of `neuron_types.classify`.
        modalities: MINER's scores, or the sets that it selected by modality.
        critical: Of a search for critical neurons.
        explanations: Of `explain`.

    Example:
        >>> neuron = Neuron("blocks.1.mlp.hook_act", 7)
        >>> results = Results(modalities={"image": NeuronSet([neuron])})
        >>> results.about(neuron)
        [Fact(label='modality (MINER)', text='image', detail='')]
    """

    statistics: NeuronStatistics | None = None
    types: NeuronTypes | None = None
    modalities: ModalityScores | Mapping[str, NeuronSet] | None = None
    critical: CriticalNeurons | None = None
    explanations: Explanations | None = None

    def about(self, neuron: Neuron) -> list[Fact]:
        """All that is known of a neuron; a result without its hook point says nothing."""
        parts = (self._explained, self._typed, self._modality, self._criticality, self._usual)
        return [fact for part in parts for fact in part(neuron)]

    def _explained(self, neuron: Neuron) -> list[Fact]:
        if self.explanations is None:
            return []
        if neuron not in self.explanations:
            why = self.explanations.skipped.get(neuron)
            return [Fact("explanation", "none", why)] if why else []
        one = self.explanations[neuron]
        score = f"predicts held-out samples with a correlation of {one.score.pearson:.2f}"
        return [Fact("explanation", one.explanation.text or "none was found", score)]

    def _typed(self, neuron: Neuron) -> list[Fact]:
        if self.types is None or neuron.name not in self.types.sites:
            return []
        from vlm_lens.analyses.neuron_types_labels import LABELS

        site = self.types.sites[neuron.name]
        label = int(site.labels[neuron.index])
        share = float(site.shares[label, neuron.index])
        sure = bool(self.types.is_significant(neuron.name)[neuron.index])
        chance = "more than chance" if sure else "could be chance"
        return [Fact("type", LABELS[label], f"{share:.0%} of its top samples; {chance}")]

    def _modality(self, neuron: Neuron) -> list[Fact]:
        found, label = self.modalities, "modality (MINER)"
        if found is None:
            return []
        if not isinstance(found, Scores):
            names = [name for name, neurons in found.items() if neuron in neurons]
            return [Fact(label, ", ".join(names))] if names else []
        if neuron.name not in found:
            return []
        layer = list(found).index(neuron.name)
        scores = found.weighted()[:, layer, neuron.index].tolist()
        pairs = sorted(zip(scores, found.occurring, strict=True), reverse=True)
        each = ", ".join(f"{name} {score:.2f}" for score, name in pairs)
        return [Fact(label, pairs[0][1], f"importance: {each}")] if pairs else []

    @cached_property
    def _rank_of(self) -> dict[Neuron, int]:
        ranking = () if self.critical is None else self.critical.ranking
        return {neuron: rank for rank, neuron in enumerate(ranking, start=1)}

    def _criticality(self, neuron: Neuron) -> list[Fact]:
        if self.critical is None or neuron not in self._rank_of:
            return []
        rank, k, method = self._rank_of[neuron], self.critical.k, self.critical.method
        critical = "no collapse was found"
        if k is not None:
            critical = f"among the {k:,} critical ones" if rank <= k else f"the first {k:,} suffice"
        text = f"rank {rank:,} of {len(self.critical.ranking):,}"
        return [Fact(f"criticality ({method})", text, critical)]

    @lru_cache(maxsize=8)  # noqa: B019 - results live as long as their explorer
    def _moments(self, name: str) -> dict[str, Moments]:
        return {} if self.statistics is None else self.statistics.moments(name)

    def _usual(self, neuron: Neuron) -> list[Fact]:
        found = self.statistics
        if found is None or neuron.name not in found.sites:
            return []
        facts = []
        for kind, moments in self._moments(neuron.name).items():
            i = neuron.index
            text = f"mean {float(moments.mean[i]):.3g}, largest {float(moments.largest[i]):.3g}"
            rate = float(moments.active[i]) / moments.count
            where = f"active at {rate:.1%} of {moments.count:,} positions"
            facts.append(Fact(f"over {kind}", text, f"{where}, {found.n_samples:,} samples"))
        return facts

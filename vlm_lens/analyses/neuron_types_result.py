"""What typing neurons found."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlm_lens.analyses import neuron_types_words as words
from vlm_lens.analyses.neuron_types_labels import LABELS, Label, SiteTypes
from vlm_lens.analyses.neuron_types_null import false_discovery_rates
from vlm_lens.counted import counted
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.neuron import split_name
from vlm_lens.plots.type_proportions import type_proportions
from vlm_lens.results import Result, Section

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class NeuronTypes(Result):
    """The types of all neurons of some hook points.

    Attributes:
        sites: By hook name.
        parameters: Everything that they depend on, as JSON can hold it.
        tried: A row for each combination of thresholds; the first is the one that counts.

    Example:
        >>> counts = torch.tensor([[9, 1], [0, 2], [1, 7], [0, 0]])
        >>> site = SiteTypes(counts, torch.ones(2), torch.tensor([[0.001, 1.0]] * 4))
        >>> found = NeuronTypes({"blocks.0.mlp.hook_act": site},
        ...                     {"high_confidence": 0.8, "alpha": 0.05, "n_samples": 30})
        >>> found
        NeuronTypes(2 neurons: visual 1, text 0, multi-modal 1, unknown 0; 1 by more than chance)
        >>> found.neurons("visual", high_confidence=True)
        NeuronSet(1 neuron: blocks.0.mlp.hook_act 1)
    """

    KIND = "types"
    DIGITS = ".6g"

    sites: Mapping[str, SiteTypes]
    parameters: dict[str, Any]
    tried: list[dict[str, int | float]] = field(default_factory=list)

    # What it says -----------------------------------------------------------------------------

    @cached_property
    def _joined(self) -> SiteTypes:
        """All hook points as one."""
        sites = self.sites.values()
        return SiteTypes(
            counts=torch.cat([site.counts for site in sites], dim=1),
            maxima=torch.cat([site.maxima for site in sites]),
            tails=torch.cat([site.tails for site in sites], dim=1),
        )

    @cached_property
    def q_values(self) -> dict[str, Float[Tensor, " d"]]:
        """By hook name, the rate of false discoveries at which each label is one, over all."""
        rates = false_discovery_rates(self._joined.p_values)
        sizes = [len(site.maxima) for site in self.sites.values()]
        return dict(zip(self.sites, rates.split(sizes), strict=True))

    def is_significant(self, name: str) -> Bool[Tensor, " d"]:
        """Which neurons of a hook point have a label that is more than chance."""
        return self.q_values[name] <= self.parameters["alpha"]

    def is_confident(self, name: str) -> Bool[Tensor, " d"]:
        """Which neurons of a hook point have a share above ``high_confidence``."""
        return self.sites[name].shares.amax(0) > self.parameters["high_confidence"]

    def neurons(
        self, label: Label, *, high_confidence: bool = False, significant: bool = False
    ) -> NeuronSet:
        """The neurons of a label, those with the largest share first.

        Args:
            label: "visual", "text", "multi-modal" or "unknown".
            high_confidence: Only those with a share of high confidence.
            significant: Only those whose label is more than chance.

        Raises:
            ValueError: There is no such label.
        """
        if label not in LABELS:
            raise ValueError(f"expected a label of {list(LABELS)}, got {label!r}")
        place, scores, n = LABELS.index(label), {}, 0
        for name, site in self.sites.items():
            kept = site.labels == place
            if high_confidence:
                kept &= self.is_confident(name)
            if significant:
                kept &= self.is_significant(name)
            scores[name] = site.shares[place].where(kept, -1.0)
            n += int(kept.sum())
        return NeuronSet.from_scores(scores, k=n)

    # As tables --------------------------------------------------------------------------------

    def table(self) -> pd.DataFrame:
        """A row for each label: how many neurons have it, and how sure that is.

        Returns:
            Columns ``label``, ``neurons``, ``share``, and how many of them are of
            ``high_confidence``, have a ``small`` p-value, are ``significant`` (corrected for their
            number) and ``never_active`` (their largest activation is not positive).
        """
        every = self._joined
        flags = {
            "high_confidence": torch.cat([self.is_confident(name) for name in self.sites]),
            "small": every.p_values <= self.parameters["alpha"],
            "significant": torch.cat([self.is_significant(name) for name in self.sites]),
            "never_active": every.maxima <= 0,
        }
        rows = []
        for place, label in enumerate(LABELS):
            its = every.labels == place
            row = {"label": label, "neurons": int(its.sum()), "share": float(its.double().mean())}
            rows.append(row | {name: int((flag & its).sum()) for name, flag in flags.items()})
        return pd.DataFrame(rows)

    def by_layer(self, *, high_confidence: bool = False) -> pd.DataFrame:
        """A row for each hook point: which share of its neurons has each label.

        Args:
            high_confidence: Count only neurons of high confidence; shares are still of all.

        Returns:
            Columns ``component``, ``layer``, ``name``, ``neurons``, one with the share of each
            label, and one ``significant ...`` with the share that has it by more than chance.
        """
        rows = []
        for name, site in self.sites.items():
            component, layer, _ = split_name(name)
            kept = self.is_confident(name) if high_confidence else torch.ones_like(site.maxima) > 0
            of = torch.nn.functional.one_hot(site.labels, len(LABELS)).bool() & kept[:, None]
            sure = of & self.is_significant(name)[:, None]
            row = {"component": component, "layer": layer, "name": name, "neurons": len(kept)}
            row |= dict(zip(LABELS, of.double().mean(0).tolist(), strict=True))
            significant = [f"significant {label}" for label in LABELS]
            rows.append(row | dict(zip(significant, sure.double().mean(0).tolist(), strict=True)))
        return pd.DataFrame(rows).astype({"layer": "Int64"})

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each neuron.

        Returns:
            Columns ``component``, ``layer``, ``site``, ``index``, ``name``, ``label``, the shares
            ``p_v``, ``p_t``, ``p_m`` and ``p_u``, ``maximum``, and the label's ``p_value`` and
            ``q_value`` (corrected for the number of neurons).
        """
        frames = []
        for name, site in self.sites.items():
            component, layer, end = split_name(name)
            about = {"component": component, "layer": layer, "site": end}
            about["index"] = np.arange(len(site.maxima))
            labels = pd.Categorical.from_codes(site.labels.tolist(), categories=list(LABELS))
            about |= {"name": name, "label": labels}
            shares = {f"p_{a[0]}": s.numpy() for a, s in zip(LABELS, site.shares, strict=True)}
            numbers = {
                "maximum": site.maxima.numpy(),
                "p_value": site.p_values.numpy(),
                "q_value": self.q_values[name].numpy(),
            }
            frames.append(pd.DataFrame({**about, **shares, **numbers}))
        return pd.concat(frames, ignore_index=True).astype({"layer": "Int64"})

    def sensitivity(self) -> pd.DataFrame:
        """A row for each combination of thresholds; the first is the one that counts.

        Returns:
            Columns ``T_v``, ``n_v``, ``T_t``, ``n_t``, the share of neurons with each label, and
            ``changed``: the share whose label is another one than in the first row.
        """
        frame = pd.DataFrame(self.tried)
        shares = [*LABELS, "changed"]
        frame[shares] = frame[shares] / len(self._joined.maxima)
        return frame.astype({"n_v": int, "n_t": int})

    # Looking at it ----------------------------------------------------------------------------

    def plot(self, *, high_confidence: bool = False) -> go.Figure:
        """A stacked bar for each layer (Fig. 5 of the paper).

        Args:
            high_confidence: Draw only neurons of high confidence; the rest of a bar is left empty.
        """
        few = (
            f", share above {self.parameters['high_confidence']:g} only" if high_confidence else ""
        )
        return type_proportions(
            self.by_layer(high_confidence=high_confidence),
            title=f"Types of {len(self._joined.maxima):,} neurons by layer{few}",
            remarks=[
                "Full colour: more than chance at a rate of false discoveries of "
                f"{self.parameters['alpha']:g}; faint: not."
            ],
        )

    def summary(self) -> str:
        """How many neurons have each label, in a line."""
        counts = torch.bincount(self._joined.labels, minlength=len(LABELS)).tolist()
        each = ", ".join(f"{label} {n:,}" for label, n in zip(LABELS, counts, strict=True))
        sure = sum(int(self.is_significant(name).sum()) for name in self.sites)
        return f"{sum(counts):,} neurons: {each}; {sure:,} by more than chance"

    @property
    def notes(self) -> tuple[str, ...]:
        """Which samples do not count."""
        reasons = Counter(self.parameters.get("left_out", {}).values())
        left_out = (f"{counted(n, 'sample')} left out: {why}" for why, n in reasons.items())
        return (*left_out, *self._short_answers())

    def _short_answers(self) -> Iterator[str]:
        """That few neurons can be text where answers are short."""
        n_t, n_tokens = (self.parameters.get(name, math.inf) for name in ("n_t", "n_text_tokens"))
        mean = n_tokens / self.parameters["n_samples"]
        if mean < n_t:
            yield (
                f"answers have {mean:.2g} text tokens on average, and a sample needs {n_t} of them "
                "(n_t) to be text-activated: with such short answers few neurons can be text"
            )

    def headline(self) -> str:
        """Which share of the neurons has which label."""
        return words.headline(self.table().to_dict("records"))

    def sections(self) -> list[Section]:
        """The labels, where they are, other thresholds, and the surest neurons."""
        alpha, level = (self.parameters[name] for name in ("alpha", "high_confidence"))
        return [
            words.of_labels(self.table(), alpha=alpha, level=level),
            words.of_layers(self.by_layer(), self.plot()),
            Section(figure=self.plot(high_confidence=True)),
            *words.of_thresholds(self.sensitivity()),
            *words.surest(self.to_dataframe()),
        ]

"""The labels of neurons, from how many of their top samples are of which type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.analyses.neuron_types_counts import Grid, SiteCounts
from vlm_lens.analyses.neuron_types_null import tails
from vlm_lens.statistics import TopSamples

Label = Literal["visual", "text", "multi-modal", "unknown"]
LABELS: tuple[Label, ...] = get_args(Label)


@dataclass(frozen=True, eq=False)
class SiteTypes:
    """The types of the neurons of one hook point.

    Attributes:
        counts: How many of each neuron's top samples are of each type, in the order of `LABELS`.
        maxima: Each neuron's largest activation; one that is not positive is never activated.
        tails: The chance of at least as many samples of each type, if the kind of token does not
            matter.
    """

    counts: Int[Tensor, "4 d"]
    maxima: Float[Tensor, " d"]
    tails: Float[Tensor, "4 d"]

    @property
    def labels(self) -> Int[Tensor, " d"]:
        """The place in `LABELS` of each neuron's most frequent type; of equal ones the first."""
        return _most(self.counts)

    @property
    def shares(self) -> Float[Tensor, "4 d"]:
        """p_v, p_t, p_m and p_u."""
        return self.counts / self.counts.sum(0)

    @property
    def p_values(self) -> Float[Tensor, " d"]:
        """Of each neuron's label, times 4: it is one of four, chosen by looking."""
        chosen = self.tails.gather(0, self.labels[None])[0]
        return (len(LABELS) * chosen).clamp(max=1.0)


def of_site(counts: SiteCounts, top: TopSamples) -> SiteTypes:
    """The types at one hook point, at the thresholds that count."""
    found = _by_type(counts, 0, 0, n_top=len(top.samples))
    return SiteTypes(found, top.values[0], tails(counts.chances, found))


def _by_type(counts: SiteCounts, v: int, t: int, *, n_top: int) -> Int[Tensor, "4 d"]:
    """How many samples are of each type at one pair of visual and one of text thresholds."""
    visual, text, both = counts.visual[v], counts.text[t], counts.both[v, t]
    return torch.stack([visual - both, text - both, both, n_top - visual - text + both])


def _most(counts: Int[Tensor, "4 d"]) -> Int[Tensor, " d"]:
    n = len(LABELS)
    return (counts * n - torch.arange(n)[:, None]).argmax(0)


def sensitivity(state: Mapping[str, SiteCounts], grid: Grid) -> list[dict[str, int | float]]:
    """How many neurons have each label at each combination of thresholds, and how many others."""
    n_top = {name: site.chances.shape[1] - 1 for name, site in state.items()}
    first = {name: _most(_by_type(site, 0, 0, n_top=n_top[name])) for name, site in state.items()}
    rows = []
    for v, (T_v, n_v) in enumerate(grid.visual):
        for t, (T_t, n_t) in enumerate(grid.text):
            counts, changed = torch.zeros(len(LABELS), dtype=torch.int64), 0
            for name, site in state.items():
                labels = _most(_by_type(site, v, t, n_top=n_top[name]))
                counts += torch.bincount(labels, minlength=len(LABELS))
                changed += int((labels != first[name]).sum())
            row = {"T_v": T_v, "n_v": n_v, "T_t": T_t, "n_t": n_t}
            row |= dict(zip(LABELS, counts.tolist(), strict=True))
            rows.append({**row, "changed": changed})
    return rows


def check_shares(*, high_confidence: int | float, alpha: int | float) -> None:
    """Raises ValueError unless both are shares."""
    for name, value in (("high_confidence", high_confidence), ("alpha", alpha)):
        if not 0 <= value < 1:
            raise ValueError(f"expected {name} from 0 to below 1, got {value}")

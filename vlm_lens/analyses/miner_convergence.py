"""How near the modalities' hidden states come to each other, layer by layer.

MINER (arXiv 2410.04819) shows by t-SNE that modalities converge in the lower layers. These are
measured quantities in place of a picture; how they are defined is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.analyses.miner_scores import Split
from vlm_lens.analyses.miner_states import pooled_states
from vlm_lens.counted import counted
from vlm_lens.model import HookedVLM
from vlm_lens.passes.data import Data
from vlm_lens.passes.run import OnBatch
from vlm_lens.plots.lines import Panel, lines, lines_of
from vlm_lens.results import provenance
from vlm_lens.results.table import TableResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

Cloud = Float[Tensor, "sample d"]
_MEASURES = ("knn_mixing", "cka", "cka_shuffled", "cosine")
_LEAST = 4
"""So few samples or fewer say nothing about neighbours."""


@dataclass(frozen=True, eq=False, repr=False)
class Convergence(TableResult):
    """How alike two modalities' hidden states are at each depth.

    Each row is a depth (0: what enters the first layer) and a pair of modalities: ``depth``,
    ``name`` of the hook point, ``a``, ``b``, and over the samples that have both

    - ``knn_mixing``: of each vector's nearest neighbours (by cosine), the share that are of the
      other modality, divided by what it would be if modalities were mixed evenly: 0 for two clouds
      apart, 1 for one cloud;
    - ``cka``: linear centred kernel alignment (Kornblith et al. 2019, equation 3): whether samples
      that are alike in one modality are alike in the other, wherever the clouds lie;
    - ``cka_shuffled``: the same with samples paired at random, which says how much of it is due to
      few samples in many dimensions;
    - ``cosine`` of a sample's two vectors, on the mean;
    - ``n_samples``.
    """

    KIND = "convergence"
    TITLE: ClassVar[str] = "How near modalities come to each other"

    def table(self) -> pd.DataFrame:
        """One row for each pair and measure: where it is largest, at the input and at the end."""
        rows = []
        for a, b in dict.fromkeys(zip(self.frame["a"], self.frame["b"], strict=True)):
            some = self.frame[(self.frame["a"] == a) & (self.frame["b"] == b)]
            for measure in _MEASURES:
                values = some[measure].tolist()
                best = max(range(len(values)), key=values.__getitem__)
                rows.append((a, b, measure, values[0], values[-1], values[best], best))
        return pd.DataFrame(rows, columns=["a", "b", "measure", "input", "end", "most", "at depth"])

    def plot(self) -> go.Figure:
        """Lines over the depth, one panel for each measure."""
        rows = self.frame.to_dict("records")
        of = {name: lines_of(rows, "depth", name, by=["a", "b"]) for name in _MEASURES}
        panels = [
            Panel("neighbours of the other modality (1 = evenly mixed)", of["knn_mixing"], reach=1),
            Panel("linear CKA (dotted: samples shuffled)", of["cka"], of["cka_shuffled"], 1),
            Panel("cosine", of["cosine"], reach=1),
        ]
        return lines(panels, title=self.TITLE, x_title="depth (0 = input)", remarks=self.notes)


def convergence(
    model: HookedVLM,
    datasets: Data,
    *,
    k: int = 10,
    split: Split = "special_text_separate",
    seeds: Sequence[int] = (0, 1, 2),
    batch_size: int = 8,
    on_batch: OnBatch | None = None,
) -> Convergence:
    """Compares mean hidden states over each modality's tokens, sample by sample.

    Args:
        model: The model.
        datasets: Samples or prepared inputs, as for `miner.score`.
        k: How many nearest neighbours are looked at; at most as many as there are samples.
        split: Which modalities are told apart.
        seeds: Of the shuffled pairs that CKA is compared with.
        batch_size: How many samples run at once.
        on_batch: Called after each batch with the number of batches done and of all.

    Raises:
        ValueError: No two modalities occur together in more than 4 samples, or `k` is below 1.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> found = convergence(model, load_samples("shapes-llava", n=8))
        >>> len(found.frame), found.frame["n_samples"].unique().tolist()
        (21, [8])
    """
    if k < 1:
        raise ValueError(f"expected k of at least 1, got {k}")
    states = pooled_states(model, datasets, split=split, batch_size=batch_size, on_batch=on_batch)
    rows, notes = [], list(states.notes)
    for a, b in combinations(states.vectors, 2):
        one, two = (vectors.double() for vectors in states.pair(a, b))
        if len(one) <= _LEAST:
            notes.append(
                f"{a} and {b} occur together in only {counted(len(one), 'sample')}: left out"
            )
            continue
        for depth, name in enumerate(states.names):
            x, y = one[:, depth], two[:, depth]
            shuffled = sum(linear_cka(x, _shuffled(y, seed)) for seed in seeds)
            alike = float(torch.cosine_similarity(x, y).mean())
            measured = knn_mixing(x, y, k=k), linear_cka(x, y), shuffled / max(len(seeds), 1), alike
            rows.append((depth, name, a, b, *measured, len(x)))
    if not rows:
        raise ValueError(
            f"expected two modalities that occur together in more than {_LEAST} samples: "
            f"{'; '.join(notes) or 'only one occurs'}"
        )
    columns = ["depth", "name", "a", "b", *_MEASURES, "n_samples"]
    parameters = {"k": k, "split": split, "seeds": list(seeds), "provenance": provenance(model)}
    return Convergence(pd.DataFrame(rows, columns=columns), parameters, tuple(notes))


def knn_mixing(one: Cloud, two: Cloud, *, k: int = 10) -> float:
    """Of each vector's nearest neighbours, the share in the other cloud, 1 for an even mixture.

    Args:
        one: A cloud.
        two: Another one, of as many vectors.
        k: How many neighbours; at most as many as a cloud has vectors.

    Example:
        >>> cloud = torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3]])
        >>> knn_mixing(cloud, cloud.flip(1), k=2)
        0.0
    """
    n = len(one)
    both = torch.nn.functional.normalize(torch.cat([one, two]), dim=1)
    alike = (both @ both.T).fill_diagonal_(-torch.inf)
    nearest = alike.topk(min(k, n), dim=1).indices
    is_two = torch.arange(2 * n, device=one.device) >= n
    share = (is_two[nearest] != is_two[:, None]).double().mean()
    return float(share / (n / (2 * n - 1)))


def linear_cka(one: Cloud, two: Float[Tensor, "sample d_two"]) -> float:
    """Linear centred kernel alignment of the same samples' vectors; 0 where a cloud is a point.

    Example:
        >>> cloud = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
        >>> round(linear_cka(cloud, 2 * cloud.flip(1) + 5), 6)
        1.0
    """
    x, y = one - one.mean(0), two - two.mean(0)
    norm = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).norm() ** 2 / norm) if norm > 0 else 0.0


def _shuffled(cloud: Cloud, seed: int) -> Cloud:
    return cloud[torch.randperm(len(cloud), generator=torch.Generator().manual_seed(seed))]

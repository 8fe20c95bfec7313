"""Semantic probing and semantic telomeres, as measured quantities.

MINER (arXiv 2410.04819) sees two phenomena in t-SNE plots of hidden states: *semantic probing*,
where tokens of a modality reach out toward text tokens, and *semantic telomeres*, where special
tokens anchor themselves to text tokens. The paper gives no numbers; what is measured here is ours:

- Hidden states are means over a modality's tokens of a prompt, at each depth.
- **Probing.** ``toward_text`` is the cosine between the step that a modality's state makes in a
  layer and the direction from it to the text's state before that layer; ``text_toward`` is the
  same for the text's step toward the modality. A modality probes if it moves toward the text, and
  more than the text moves toward it.
- **Telomeres.** Special tokens are telomeres of the text, beside a modality, if at all depths they
  are nearer to it (by cosine distance) than the modality is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.analyses.miner_states import PooledStates, States, pooled_states
from vlm_lens.model import HookedVLM
from vlm_lens.passes.data import Data
from vlm_lens.passes.run import OnBatch
from vlm_lens.plots.lines import Panel, lines, lines_of
from vlm_lens.results import provenance
from vlm_lens.results.table import TableResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

TEXT, SPECIAL = "text", "special"
_COLUMNS = (
    *("depth", "name", "modality", "distance", "toward_text", "text_toward"),
    *("special_distance", "special_nearer", "n_samples"),
)


@dataclass(frozen=True, eq=False, repr=False)
class Phenomena(TableResult):
    """How each modality lies and moves with respect to the text.

    Each row is a depth (0: what enters the first layer) and a modality other than text: ``depth``,
    ``name`` of the hook point, ``modality``, ``distance`` to the text (1 - cosine, mean over
    samples), ``toward_text`` and ``text_toward`` (see the module; NaN at depth 0),
    ``special_distance`` of the special tokens to the text in the samples that have all three, the
    share of those in which special tokens are nearer than the modality (``special_nearer``; both
    NaN for special tokens and without them) and ``n_samples``.
    """

    KIND = "phenomena"
    TITLE: ClassVar[str] = "Semantic probing and semantic telomeres"

    def table(self) -> pd.DataFrame:
        """One row for each modality.

        Returns:
            Columns ``modality``, its ``distance`` to the text at the input and at the end, the
            means of ``toward_text`` and ``text_toward`` over layers, whether it is ``probing``, at
            which share of the depths special tokens are nearer to the text (``special nearer``) and
            whether they are a ``telomere`` beside it (<NA> where there are none).
        """
        rows = []
        for modality in dict.fromkeys(self.frame["modality"]):
            some = self.frame.query("modality == @modality")
            distances = some["distance"].tolist()
            toward, back = (some[n].dropna().tolist() for n in ("toward_text", "text_toward"))
            toward, back = fmean(toward), fmean(back)
            nearer, is_telomere = math.nan, None
            special = some["special_distance"].tolist()
            if not any(map(math.isnan, special)):
                margins = [its - theirs for its, theirs in zip(distances, special, strict=True)]
                nearer = sum(margin > 0 for margin in margins) / len(margins)
                is_telomere = min(margins) > 0
            moves = toward, back, toward > max(back, 0.0)
            rows.append((modality, distances[0], distances[-1], *moves, nearer, is_telomere))
        ends = ["distance at input", "distance at end"]
        moves = ["toward_text", "text_toward", "probing"]
        frame = pd.DataFrame(
            rows, columns=["modality", *ends, *moves, "special nearer", "telomere"]
        )
        return frame.astype({"telomere": "boolean"})

    def plot(self) -> go.Figure:
        """Distances and drifts over the depth."""
        rows = self.frame.to_dict("records")
        distance, toward, back = (
            lines_of(rows, "depth", column, by=["modality"])
            for column in ("distance", "toward_text", "text_toward")
        )
        panels = [
            Panel("distance to the text (1 − cosine)", distance),
            Panel("drift toward the text (dotted: the text's drift toward it)", toward, back),
        ]
        return lines(panels, title=self.TITLE, x_title="depth (0 = input)")


def phenomena(
    model: HookedVLM,
    datasets: Data,
    *,
    batch_size: int = 8,
    on_batch: OnBatch | None = None,
) -> Phenomena:
    """Measures where each modality lies and moves with respect to the text, at each depth.

    Args:
        model: The model.
        datasets: Samples or prepared inputs, as for `miner.score`.
        batch_size: How many samples run at once.
        on_batch: Called after each batch with the number of batches done and of all.

    Raises:
        ValueError: No sample has text and something else.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> found = phenomena(model, load_samples("shapes-llava", n=8))
        >>> found.table()["modality"].tolist()
        ['special', 'image']
    """
    states = pooled_states(model, datasets, batch_size=batch_size, on_batch=on_batch)
    others = [modality for modality in states.vectors if modality != TEXT]
    if TEXT not in states.vectors or not others:
        raise ValueError(
            f"expected prompts with text and something else, got only {list(states.vectors)}"
        )
    rows = [row for modality in others for row in _rows(states, modality)]
    if not rows:
        raise ValueError(f"expected prompts with text and one of {others}, but none has both")
    notes = list(states.notes)
    if SPECIAL not in others:
        notes.append("no special tokens occur, so nothing is known about telomeres")
    frame = pd.DataFrame(rows, columns=list(_COLUMNS))
    return Phenomena(frame, {"provenance": provenance(model)}, tuple(notes))


def _rows(states: PooledStates, modality: str) -> list[tuple]:
    own, text = states.pair(modality, TEXT)
    n_samples, n_depths = own.shape[:2]
    if not n_samples:
        return []
    distance = _distance(own, text).mean(0).tolist()
    toward, back = ([math.nan, *_drift(*pair)] for pair in ((own, text), (text, own)))
    special, nearer = [math.nan] * n_depths, [math.nan] * n_depths
    if SPECIAL in states.vectors and modality != SPECIAL:
        special, nearer = _beside_special(states, modality)
    measured = zip(distance, toward, back, special, nearer, strict=True)
    return [
        (depth, states.names[depth], modality, *row, n_samples)
        for depth, row in enumerate(measured)
    ]


def _beside_special(states: PooledStates, modality: str) -> tuple[list[float], list[float]]:
    """The special tokens' distance to the text at each depth, and how often it is the smaller."""
    kinds = (modality, SPECIAL, TEXT)
    all_three = sorted(set.intersection(*({*states.samples[kind]} for kind in kinds)))
    if not all_three:
        nothing = [math.nan] * len(states.names)
        return nothing, nothing
    own, special, text = (
        states.vectors[kind][[states.samples[kind].index(sample) for sample in all_three]]
        for kind in kinds
    )
    theirs, its = _distance(special, text), _distance(own, text)
    return theirs.mean(0).tolist(), (theirs < its).double().mean(0).tolist()


def _distance(one: States, two: States) -> Float[Tensor, "sample depth"]:
    return 1 - torch.cosine_similarity(one.double(), two.double(), dim=-1)


def _drift(one: States, two: States) -> list[float]:
    """The cosine between each step of one and the way from it to the other before that step."""
    one, two = one.double(), two.double()
    step, way = one.diff(dim=1), (two - one)[:, :-1]
    return torch.cosine_similarity(step, way, dim=-1).mean(0).tolist()

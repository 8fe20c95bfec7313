"""What the last token of a prompt attends to, with and without modality-specific neurons.

MINER (arXiv 2410.04819) says that these neurons influence how key information converges to the
last token. Measured, in a way that is ours, as the share of the last token's attention (mean over
heads, in the model's own attention) that goes to each modality's tokens, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch

from vlm_lens.analyses.miner import separate
from vlm_lens.analyses.miner_scores import SPLITS, Split
from vlm_lens.edits import Edit, Set, Value
from vlm_lens.experiments import CLEAN
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.controls import random_neurons
from vlm_lens.neurons.neuron import split_name
from vlm_lens.parts import decoder_for
from vlm_lens.passes import Batch, Passed, Reading, Reducer, Run, State, one_pass
from vlm_lens.passes.data import Data, named
from vlm_lens.passes.run import OnBatch
from vlm_lens.plots.lines import Panel, lines, lines_of
from vlm_lens.results import provenance
from vlm_lens.results.table import TableResult

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False, repr=False)
class LastTokenAttention(TableResult):
    """How much of the last token's attention each modality gets.

    Each row is a layer, a modality and what is masked: ``layer``, ``name`` of the hook point,
    ``modality``, ``masked`` ("none", a set's name, or that with ", random" and a seed), ``mass``
    (mean over the samples that have the modality), ``uniform`` (what it would be if all tokens got
    the same) and ``n_samples``.
    """

    KIND = "last_token_attention"
    TITLE: ClassVar[str] = "Attention of the prompt's last token"

    def table(self) -> pd.DataFrame:
        """One row for each modality, one column for what is masked: the mean mass over layers."""
        wide = self.frame.pivot_table(index="modality", columns="masked", values="mass", sort=False)
        uniform = self.frame.groupby("modality", sort=False)["uniform"].mean()
        wide = wide[list(dict.fromkeys(self.frame["masked"]))]
        wide.insert(0, "uniform", uniform)
        return wide.reset_index().rename_axis(columns=None)

    def plot(self) -> go.Figure:
        """Lines over the layers, one panel for each modality, for each set that is masked."""
        panels = []
        for modality, frame in self.frame.groupby("modality", sort=False):
            rows = frame.to_dict("records")
            clean = [row for row in rows if row["masked"] == CLEAN]
            panels.append(
                Panel(
                    f"attention to {modality} (dotted: if it were even)",
                    lines_of(rows, "layer", "mass", by=["masked"]),
                    lines_of(clean, "layer", "uniform", by=["masked"]),
                )
            )
        return lines(panels, title=self.TITLE, remarks=self.notes)


@torch.no_grad()
def last_token_attention(
    model: HookedVLM,
    datasets: Data,
    *,
    selected: Mapping[str, NeuronSet] | None = None,
    seeds: Sequence[int] = (0,),
    value: Value = "zero",
    split: Split = "special_text_separate",
    batch_size: int = 8,
    on_batch: OnBatch | None = None,
) -> LastTokenAttention:
    """Measures where the last token of each prompt attends to, before and after masking.

    Args:
        model: A model whose text model is a decoder.
        datasets: Samples or prepared inputs, as for `miner.score`.
        selected: Neurons to mask, by name, each set by itself.
        seeds: Of random neurons of the same layers, for each set; none for no control.
        value: What masked neurons become; see `vlm_lens.edits.Set`.
        split: Which modalities are told apart.
        batch_size: How many samples run at once.
        on_batch: Called after each batch of each run with the number of batches done and of all.

    Raises:
        ValueError: The text model is an encoder with a decoder, or no sample can be read.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> found = last_token_attention(model, load_samples("shapes-llava", n=4))
        >>> found.table().columns.tolist(), found.table()["modality"].tolist()
        (['modality', 'uniform', 'none'], ['text', 'special', 'image'])
    """
    decoder_for(model, "what its last token attends to")
    by_name = named(datasets)
    edits: dict[str, Edit | None] = {CLEAN: None}
    for name, neurons in (selected or {}).items():
        edits[name] = Set(neurons, value)
        for seed in seeds:
            edits[f"{name}, random {seed}"] = Set(random_neurons(neurons, seed=seed), value)
    names = [
        name
        for name in model.hook_dict
        if name.startswith("blocks.") and name.endswith(".attn.hook_pattern")
    ]
    rows, notes = [], []
    for name, edit in edits.items():
        passed = one_pass(
            model,
            by_name,
            {"mass": LastToken(split)},
            sites=names,
            under=None if edit is None else partial(_hooks, edit),
            run=Run(batch_size=batch_size, on_batch=on_batch),
        )
        rows += _rows(passed, names, name, split)
        notes += passed.notes
    columns = ["layer", "name", "modality", "masked", "mass", "uniform", "n_samples"]
    orders = names, SPLITS[split], list(edits)
    rows.sort(key=lambda row: [some.index(one) for some, one in zip(orders, row[1:4], strict=True)])
    return LastTokenAttention(
        pd.DataFrame(rows, columns=columns),
        {"value": value, "split": split, "seeds": list(seeds), "provenance": provenance(model)},
        tuple(dict.fromkeys(notes)),
    )


def _hooks(edit: Edit, batch: Batch) -> list[Any]:
    return edit.hooks(batch.prompts)


@dataclass(frozen=True)
class LastToken(Reducer):
    """Adds up over samples the attention of the prompt's last token to each modality.

    Attributes:
        split: Which modalities are told apart.
    """

    split: Split

    def __call__(self, reading: Reading) -> State:
        shape = (len(reading.batch), len(SPLITS[self.split]))
        mass, even = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        for i, token_map in enumerate(reading.batch.maps):
            positions, sets = separate(token_map, self.split)
            attends = reading.activation[i, :, positions[-1]].double().mean(0).cpu()[positions]
            mass[i], even[i] = sets.double() @ attends, sets.double().mean(1)
        return {"mass": mass.sum(0), "even": even.sum(0), "samples": (even > 0).sum(0)}


def _rows(passed: Passed, names: Sequence[str], masked: str, split: Split) -> list[tuple]:
    """A row for each layer and modality that there is, over all data sets."""
    reducer, rows = LastToken(split), []
    for name in names:
        states = [s for (_, _, site), s in passed.states.items() if site == name]
        if not states:
            continue
        whole = reduce(reducer.plus, states)
        for i, modality in enumerate(SPLITS[split]):
            if n := int(whole["samples"][i]):
                about = split_name(name)[1], name, modality, masked
                rows.append((*about, float(whole["mass"][i]) / n, float(whole["even"][i]) / n, n))
    return rows

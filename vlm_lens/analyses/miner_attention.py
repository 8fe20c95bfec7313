"""What the last token of a prompt attends to, with and without modality-specific neurons.

MINER (arXiv 2410.04819) says that these neurons influence how key information converges to the
last token. Measured, in a way that is ours, as the share of the last token's attention (mean over
heads, in the model's own attention) that goes to each modality's tokens, layer by layer.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.analyses.miner import separate
from vlm_lens.analyses.miner_inputs import Datasets, chunks_of, named, prepared
from vlm_lens.analyses.miner_layers import few_logits
from vlm_lens.analyses.miner_results import TableResult
from vlm_lens.analyses.miner_scores import SPLITS, Split
from vlm_lens.analyses.miner_tasks import CLEAN, Masking, Value, control_of
from vlm_lens.counted import counted
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.inputs import Inputs
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.neuron import split_name
from vlm_lens.parts import decoder_for
from vlm_lens.plots.lines import Panel, lines, lines_of
from vlm_lens.results import provenance

if TYPE_CHECKING:
    import plotly.graph_objects as go

Key = tuple[str, str, str]
"""Hook point, what is masked, modality."""


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
    datasets: Datasets,
    *,
    selected: Mapping[str, NeuronSet] | None = None,
    seeds: Sequence[int] = (0,),
    value: Value = "zero",
    split: Split = "special_text_separate",
    batch_size: int = 8,
    on_batch: Callable[[int, int], None] | None = None,
) -> LastTokenAttention:
    """Measures where the last token of each prompt attends to, before and after masking.

    Args:
        model: A model whose text model is a decoder.
        datasets: Samples or prepared inputs, as for `miner.score`.
        selected: Neurons to mask, by name, each set by itself.
        seeds: Of random neurons of the same layers, for each set; none for no control.
        value: What masked neurons become; see `miner_tasks.Masking`.
        split: Which modalities are told apart.
        batch_size: How many samples run at once.
        on_batch: Called after each batch with the number of batches done and of all.

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
    chunks = chunks_of(by_name, batch_size)
    maskings: dict[str, Masking | None] = {CLEAN: None}
    for name, neurons in (selected or {}).items():
        maskings[name] = Masking(neurons, value)
        for seed in seeds:
            maskings[f"{name}, random {seed}"] = Masking(control_of(neurons, seed=seed), value)
    refused: Counter[str] = Counter()
    not_finite: Counter[str] = Counter()
    masses: dict[Key, list[tuple[float, float]]] = {}
    for done, (_, inputs) in enumerate(prepared(model, chunks, refused), 1):
        for name, masking in maskings.items():
            not_finite[name] += _add(masses, model, inputs, name, masking, split)
        if on_batch is not None:
            on_batch(min(done, len(chunks)), len(chunks))
    notes = [f"{counted(n, 'sample')} left out of {reason}" for reason, n in refused.items()]
    notes += [
        f"in {counted(n, 'sample')} attention is infinite or NaN in some layers, where they "
        f"are left out; masked: {name}"
        for name, n in not_finite.items()
        if n
    ]
    if not masses:
        raise ValueError(f"expected samples to look at, but none counts: {'; '.join(notes)}")
    parameters = {"value": value, "split": split, "seeds": list(seeds)}
    return LastTokenAttention(
        _frame(masses, list(maskings), split),
        {**parameters, "provenance": provenance(model)},
        tuple(notes),
    )


def _add(
    masses: dict[Key, list[tuple[float, float]]],
    model: HookedVLM,
    inputs: Inputs,
    masked: str,
    masking: Masking | None,
    split: Split,
) -> int:
    """Adds each sample's masses, and what they would be if attention were even.

    Returns:
        In how many samples the attention of some layer is not finite; it is left out there.
    """
    broken: set[int] = set()
    separated = [separate(token_map, split) for token_map in inputs.token_map]

    def read(pattern: Tensor, hook: HookPoint) -> None:
        for i, (positions, sets) in enumerate(separated):
            row = pattern[i, :, positions[-1]].double().mean(0).cpu()[positions]
            if not row.isfinite().all():
                broken.add(i)
                continue
            for modality, chosen in zip(SPLITS[split], sets, strict=True):
                if chosen.any():
                    found = float(row[chosen].sum()), float(chosen.double().mean())
                    masses.setdefault((str(hook.name), masked, modality), []).append(found)

    names = [
        name
        for name in model.hook_dict
        if name.startswith("blocks.") and name.endswith(".attn.hook_pattern")
    ]
    hooks: list[tuple[Any, Any]] = [] if masking is None else [*masking.hooks(inputs)]
    with warnings.catch_warnings():
        # Mllama leaves its cross-attention layers out where there is no image.
        warnings.simplefilter("ignore", HookNeverFiredWarning)
        with model.hooks([*hooks, (names, read)]):
            model(inputs, return_type=None, use_cache=False, **few_logits(model))
    return len(broken)


def _frame(
    masses: Mapping[Key, list[tuple[float, float]]], masked: Sequence[str], split: Split
) -> pd.DataFrame:
    names = list(dict.fromkeys(name for name, _, _ in masses))
    rows = []
    for name in names:
        for modality in SPLITS[split]:
            for which in masked:
                found = masses.get((name, which, modality), [])
                if found:
                    mass, even = (sum(column) / len(found) for column in zip(*found, strict=True))
                    layer = split_name(name)[1]
                    rows.append((layer, name, modality, which, mass, even, len(found)))
    columns = ["layer", "name", "modality", "masked", "mass", "uniform", "n_samples"]
    return pd.DataFrame(rows, columns=columns)

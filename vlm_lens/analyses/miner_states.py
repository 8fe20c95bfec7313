"""Each sample's hidden state as one vector for each modality, at every depth of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.analyses.miner_layers import reader
from vlm_lens.analyses.miner_scores import SPLITS, Split
from vlm_lens.inputs.token_types import MODALITIES
from vlm_lens.model import HookedVLM
from vlm_lens.passes import Reading, Rows, Run, State, mean_of, one_pass
from vlm_lens.passes.data import Data, named
from vlm_lens.passes.run import OnBatch

_UNIONS = {"prompt": "any", "special_text": "special prompt+text"}
"""Modalities that are several token types together."""

States = Float[Tensor, "sample depth d"]


@dataclass(frozen=True, eq=False)
class PooledStates:
    """Mean hidden states over each modality's tokens of the prompt.

    Attributes:
        vectors: By modality, float32 on the CPU; only modalities that occur.
        samples: Which samples these are of, counted through all data sets.
        names: The hook points of the depths: what enters the first layer, and what each gives.
        notes: Samples that do not count, and why.
    """

    vectors: dict[str, States]
    samples: dict[str, list[int]]
    names: tuple[str, ...]
    notes: tuple[str, ...]

    def pair(self, a: str, b: str) -> tuple[States, States]:
        """The vectors of two modalities, of the samples that have both."""
        both = sorted({*self.samples[a]} & {*self.samples[b]})
        chosen = [[self.samples[name].index(sample) for sample in both] for name in (a, b)]
        return self.vectors[a][chosen[0]], self.vectors[b][chosen[1]]


@torch.no_grad()
def pooled_states(
    model: HookedVLM,
    datasets: Data,
    *,
    split: Split = "special_text_separate",
    batch_size: int = 8,
    on_batch: OnBatch | None = None,
) -> PooledStates:
    """Runs the model over prompts, and pools hidden states while it runs.

    Args:
        model: The model.
        datasets: Samples or prepared inputs, as for `miner.score`; answers are not read.
        split: Which modalities are told apart.
        batch_size: How many samples run at once.
        on_batch: Called after each batch with the number of batches done and of all.

    Returns:
        The vectors. Samples that cannot be prepared or whose states are infinite or NaN do not
        count; the notes say how many and why.

    Raises:
        ValueError: There are no samples, or none counts.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> found = pooled_states(model, load_samples("shapes-llava", n=3))
        >>> {modality: tuple(vectors.shape) for modality, vectors in found.vectors.items()}
        {'text': (3, 7, 128), 'special': (3, 7, 128), 'image': (3, 7, 128)}
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of {list(SPLITS)}, got {split!r}")
    by_name, names = named(datasets), depth_names(model)
    types = {name: name for name in MODALITIES} | _UNIONS
    reducers = {
        name: Rows(_pooled, over=f"{types[name]} prompt") for name in SPLITS[split] if name in types
    }
    passed = one_pass(
        model, by_name, reducers, sites=names, run=Run(batch_size=batch_size, on_batch=on_batch)
    )
    vectors: dict[str, list[Tensor]] = {name: [] for name in reducers}
    samples: dict[str, list[int]] = {name: [] for name in reducers}
    before = 0
    for dataset in by_name:
        for name in reducers:
            states = passed.of(name, dataset)
            if names[0] in states:
                vectors[name].append(_depths(states, names))
                samples[name] += (states[names[0]]["numbers"] + before).tolist()
        before += passed.n_samples.get(dataset, 0) + len(passed.left_out.get(dataset, {}))
    occurring = {name: torch.cat(some) for name, some in vectors.items() if some}
    return PooledStates(
        occurring,
        {name: samples[name] for name in occurring},
        tuple(names),
        passed.notes,
    )


def _pooled(reading: Reading, sample: int, rows: Int[Tensor, " n"]) -> Float[Tensor, " d"]:
    return mean_of(reading, sample, rows).float()


def _depths(states: Mapping[str, State], names: Sequence[str]) -> States:
    """Each sample's vectors at all depths; a layer that did not run leaves the stream as it is."""
    numbers = states[names[0]]["numbers"].tolist()
    depths = [states[names[0]]["rows"]]
    for name in names[1:]:
        vectors = depths[-1].clone()
        if name in states:
            places = [numbers.index(number) for number in states[name]["numbers"].tolist()]
            vectors[places] = states[name]["rows"]
        depths.append(vectors)
    return torch.stack(depths, dim=1)


def depth_names(model: HookedVLM) -> list[str]:
    """What enters the first layer that reads the prompt, and what each of these layers gives."""
    prefix = "encoder." if reader(model) == "encoder" else ""
    n_layers = sum(
        name.startswith(f"{prefix}blocks.") and name.endswith(".hook_resid_post")
        for name in model.hook_dict
    )
    after = [f"{prefix}blocks.{layer}.hook_resid_post" for layer in range(n_layers)]
    return [f"{prefix}blocks.0.hook_resid_pre", *after]

"""Each sample's hidden state as one vector for each modality, at every depth of the model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.analyses.miner import separate
from vlm_lens.analyses.miner_inputs import Datasets, chunks_of, named, prepared
from vlm_lens.analyses.miner_layers import few_logits, reader
from vlm_lens.analyses.miner_scores import SPLITS, Split
from vlm_lens.counted import counted
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.inputs import Inputs
from vlm_lens.model import HookedVLM

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
    datasets: Datasets,
    *,
    split: Split = "special_text_separate",
    batch_size: int = 8,
    on_batch: Callable[[int, int], None] | None = None,
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
    by_name = named(datasets)
    chunks, names = chunks_of(by_name, batch_size), depth_names(model)
    refused: Counter[str] = Counter()
    kept: dict[str, list[Tensor]] = {modality: [] for modality in SPLITS[split]}
    samples: dict[str, list[int]] = {modality: [] for modality in SPLITS[split]}
    n_seen = 0
    for done, (chunk, inputs) in enumerate(prepared(model, chunks, refused), 1):
        for sample, vectors in enumerate(_pooled(model, inputs, names, split), n_seen):
            if not all(vector.isfinite().all() for vector in vectors.values()):
                refused[f"{chunk.dataset!r}: its hidden states are infinite or NaN"] += 1
                continue
            for modality, vector in vectors.items():
                kept[modality].append(vector)
                samples[modality].append(sample)
        n_seen += len(chunk)
        if on_batch is not None:
            on_batch(min(done, len(chunks)), len(chunks))
    notes = tuple(f"{counted(n, 'sample')} left out of {reason}" for reason, n in refused.items())
    found = {modality: torch.stack(some) for modality, some in kept.items() if some}
    if not found:
        raise ValueError(f"expected samples to look at, but none counts: {'; '.join(notes)}")
    return PooledStates(found, {m: samples[m] for m in found}, tuple(names), notes)


def depth_names(model: HookedVLM) -> list[str]:
    """What enters the first layer that reads the prompt, and what each of these layers gives."""
    prefix = "encoder." if reader(model) == "encoder" else ""
    n_layers = sum(
        name.startswith(f"{prefix}blocks.") and name.endswith(".hook_resid_post")
        for name in model.hook_dict
    )
    after = [f"{prefix}blocks.{layer}.hook_resid_post" for layer in range(n_layers)]
    return [f"{prefix}blocks.0.hook_resid_pre", *after]


def _pooled(
    model: HookedVLM, inputs: Inputs, names: Sequence[str], split: Split
) -> list[dict[str, Float[Tensor, "depth d"]]]:
    """The vectors of each sample of a batch, by modality."""
    separated = [separate(token_map, split) for token_map in inputs.token_map]
    found: list[dict[str, Tensor]] = [{} for _ in separated]
    means: dict[str, list[dict[str, Tensor]]] = {}

    def pool(tensor: Tensor, hook: HookPoint) -> None:
        wide = torch.promote_types(tensor.dtype, torch.float32)
        means[str(hook.name)] = [
            {
                modality: tensor[i, positions[chosen].to(tensor.device)]
                .to(wide)
                .mean(0)
                .float()
                .cpu()
                for modality, chosen in zip(SPLITS[split], sets, strict=True)
                if chosen.any()
            }
            for i, (positions, sets) in enumerate(separated)
        ]

    with warnings.catch_warnings():
        # Mllama leaves its cross-attention layers out where there is no image.
        warnings.simplefilter("ignore", HookNeverFiredWarning)
        with model.hooks([(list(names), pool)]):
            arguments: dict[str, Any] = few_logits(model)
            model(inputs, return_type=None, use_cache=False, **arguments)
    for i, vectors in enumerate(found):
        for modality in means[names[0]][i]:
            # A layer that did not run leaves the stream as it is.
            depths: list[Tensor] = []
            for name in names:
                depths.append(means[name][i][modality] if name in means else depths[-1])
            vectors[modality] = torch.stack(depths)
    return found

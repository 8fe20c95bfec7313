"""MINER: which neurons a modality needs, in four stages.

Huang et al. 2024, "MINER: Mining the underlying pattern of modality-specific neurons in multimodal
large language models" (arXiv 2410.04819), with the formulas of the authors' public code:

1. **Modality separation.** Each token of the prompt belongs to a modality: text, special tokens,
   image, video or audio.
2. **Importance.** In each sample and layer, each neuron gets five numbers over a modality's tokens:
   how often it is active, its mean and largest activation, and its activation weighted by attention
   in two ways. Each is scaled to 0 to 1 over the layer's neurons.
3. **Aggregation** over samples, data sets and metrics.
4. **Selection** of a share of all neurons, by one of five strategies.

A neuron is what the activation function of a layer's MLP gives (``mlp.hook_act``).

What differs from the authors' code, or is not in it, is ours: special tokens are those that the
tokenizer marks as special (or the processor writes around images); a vector that is the same for
all neurons becomes 0 where the code divides by 0; ties go to the lower layer and index; random
numbers are PyTorch's. ``video`` never occurs, since no processor here takes videos. In Mllama,
where images are read by cross-attention, "image" is the one token that stands for the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_lens.analyses.miner_layers import layer_sites
from vlm_lens.analyses.miner_scores import METRICS, SPLITS, ModalityScores, Split
from vlm_lens.analyses.miner_selection import Strategy, select
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs import TokenMap
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.sites import Which
from vlm_lens.passes import Beside, Reading, Reducer, Run, State, one_pass
from vlm_lens.passes.batch import Batch
from vlm_lens.passes.data import Data, named
from vlm_lens.passes.reducers import wide
from vlm_lens.passes.run import OnBatch
from vlm_lens.results import provenance

__all__ = [
    "Importances",
    "Strategy",
    "aggregate",
    "attention",
    "importance",
    "measure",
    "score",
    "select",
    "separate",
    "token_weights",
]


_NAME = "importance"


# Stage 1: modality separation ---------------------------------------------------------------------


def separate(
    token_map: TokenMap, split: Split = "special_text_separate"
) -> tuple[Int[Tensor, " token"], Bool[Tensor, "modality token"]]:
    """Stage 1: the prompt's tokens by modality.

    Returns:
        Where the prompt's tokens are in the sequence (padding and answers are left out), and which
        of them each modality of the split has; some have none.

    Example:
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> inputs = model.prepare(text="what color is the circle ?")
        >>> positions, sets = separate(inputs.token_map[0])
        >>> sets.sum(1).tolist()  # text, special, image, video, audio
        [8, 1, 0, 0, 0]
    """
    positions = token_map.positions("prompt")
    kinds = [token_map.modality[position] for position in positions]
    unions = {"special_text": ("special", "text"), "prompt": ("text", "special", "image", "audio")}
    sets = [
        [kind in unions.get(modality, (modality,)) for kind in kinds] for modality in SPLITS[split]
    ]
    shape = len(SPLITS[split]), len(positions)
    return torch.tensor(positions), torch.tensor(sets, dtype=torch.bool).view(shape)


# Stage 2: importance ------------------------------------------------------------------------------


def attention(
    queries: Float[Tensor, "token head d_head"], keys: Float[Tensor, "token kv_head d_head"]
) -> Float[Tensor, "token token"]:
    """Who attends to whom: the mean over heads of ``softmax(Q K^T / sqrt(d_head))``.

    As in the authors' code there is no causal mask, so early tokens attend to later ones too.
    """
    n_heads, d_head = queries.shape[1:]
    keys = keys.repeat_interleave(n_heads // keys.shape[1], dim=1)  # grouped-query attention
    total = queries.new_zeros(len(queries), len(queries))
    for head in range(n_heads):  # one at a time: all of them would be large
        scores = queries[:, head] @ keys[:, head].T / math.sqrt(d_head)
        total += scores.softmax(-1)
    return total / n_heads


def token_weights(
    attends: Float[Tensor, "token token"], sets: Bool[Tensor, "modality token"]
) -> Float[Tensor, "2 modality token"]:
    """How much each token of a modality counts in attn_k and in attn_q.

    Attention is restricted to the modality's own tokens, ``A``, and goes through another softmax:

        attn_k = sum_j [softmax over i of A_ij]^T F,   attn_q = sum_i [softmax over j of A_ij] F

    so that a token's weight is a sum over a row or a column, and activations ``F`` are multiplied
    only once.
    """
    weights = attends.new_zeros(2, *sets.shape)
    for modality, chosen in enumerate(sets):
        own = attends[chosen][:, chosen]
        weights[0, modality, chosen] = own.softmax(0).sum(1)
        weights[1, modality, chosen] = own.softmax(1).sum(0)
    return weights


def importance(
    activations: Float[Tensor, "token neuron"],
    weights: Float[Tensor, "2 modality token"],
    sets: Bool[Tensor, "modality token"],
) -> Float[Tensor, "5 modality neuron"]:
    """Stage 2: one sample's prob, mean, max, attn_k and attn_q in one layer, each from 0 to 1.

    Args:
        activations: Of the prompt's tokens.
        weights: See `token_weights`.
        sets: Which tokens each modality has; where it has none, its importances are 0.

    Example:
        >>> activations = torch.tensor([[1.0, -1.0, 0.0], [3.0, 5.0, 0.0]])
        >>> sets = torch.tensor([[True, True]])
        >>> prob, mean, largest, *_ = importance(activations, torch.ones(2, 1, 2), sets)
        >>> prob.tolist(), mean.tolist(), largest.tolist()
        ([[1.0, 0.5, 0.0]], [[1.0, 1.0, 0.0]], [[0.6000000238418579, 1.0, 0.0]])
    """
    found = activations.new_zeros(5, len(sets), activations.shape[1])
    for modality, chosen in enumerate(sets):
        if chosen.any():
            own = activations[chosen]
            found[0, modality] = (own > 0).sum(0) / len(own)
            found[1, modality] = own.mean(0)
            found[2, modality] = own.amax(0)
    found[3:] = weights @ activations
    return _min_max(found)


def measure(
    activations: Float[Tensor, "token neuron"],
    queries: Float[Tensor, "token head d_head"] | None,
    keys: Float[Tensor, "token kv_head d_head"] | None,
    sets: Bool[Tensor, "modality token"],
) -> Float[Tensor, "5 modality neuron"]:
    """Stage 2 from a layer's tensors.

    A layer without self-attention (Mllama has such) counts as one where all attend evenly to all,
    so that attn_k and attn_q are there what mean is; ours.
    """
    if queries is None or keys is None:
        n = len(activations)
        attends = activations.new_full((n, n), 1 / n)
    else:
        attends = attention(queries, keys)
    return importance(activations, token_weights(attends, sets), sets)


def _min_max(values: Float[Tensor, "*any neuron"]) -> Float[Tensor, "*any neuron"]:
    """Values from 0 to 1 over the neurons; 0 where all are the same."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return torch.where(high == low, 0.0, (values - low) / (high - low))


# Stage 3: aggregation -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Importances(Reducer):
    """Adds up over samples what `measure` makes of a layer, and counts who has which modality.

    Attributes:
        split: Which modalities are told apart.
        beside: The layer's queries and keys.
    """

    split: Split
    beside: tuple[Beside, ...]

    @classmethod
    def of(cls, split: Split, *, rotated: bool) -> Importances:
        """With queries and keys after rotary positions, or before."""
        ends = {name: f"attn.hook_{name}" for name in "qk"}
        points = {
            name: (f"attn.hook_rot_{name}", end) if rotated else (end,)
            for name, end in ends.items()
        }
        return cls(split, tuple(Beside(name, some) for name, some in points.items()))

    def __call__(self, reading: Reading) -> State:
        separated = reading.positions.once(("separated", self.split), self._separated)
        activation, batch = reading.activation, reading.batch
        if activation.ndim != 3 or activation.shape[:2] != (len(batch), len(batch.maps[0])):
            raise ValueError(
                f"expected activations of the prompt's {len(batch)} x {len(batch.maps[0])} "
                f"positions at {reading.site!r}, got shape {tuple(activation.shape)}"
            )
        total = n_with = 0
        for i, (positions, sets) in enumerate(separated):
            positions, sets = positions.to(activation.device), sets.to(activation.device)
            heads = (reading.beside.get(name) for name in "qk")
            q, k = (None if t is None else wide(t[i, positions]) for t in heads)
            total = total + measure(wide(activation[i, positions]), q, k, sets)
            n_with = n_with + sets.any(1).long()
        return {"sum": torch.as_tensor(total).double(), "with": torch.as_tensor(n_with)}

    def _separated(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        return [separate(token_map, self.split) for token_map in batch.maps]


def aggregate(
    sums: Mapping[str, Float[Tensor, "metric modality layer neuron"]], n_samples: Mapping[str, int]
) -> Float[Tensor, "metric modality layer neuron"]:
    """Stage 3: the mean over a data set's samples, and the mean over data sets.

    A sample without a modality counts as 0 for it; a data set without it does not count. So data
    sets that mix prompts with and without images are better given apart.

    Args:
        sums: Of each data set, the importances added up over its samples.
        n_samples: How many samples that are.
    """
    means = [total / n_samples[name] for name, total in sums.items()]
    times = sum((mean.sum((0, 2, 3)) != 0).to(mean.dtype) for mean in means)
    together: Tensor = sum(means)  # type: ignore[assignment]
    return together / torch.as_tensor(times).clamp(min=1)[:, None, None]


# All samples --------------------------------------------------------------------------------------


@torch.no_grad()
def score(
    model: HookedVLM,
    datasets: Data,
    *,
    split: Split = "special_text_separate",
    sites: Which | NamesFilter = "act",
    rotated: bool = True,
    batch_size: int = 8,
    checkpoint: Path | None = None,
    on_batch: OnBatch | None = None,
) -> ModalityScores:
    """Stages 1 to 3: how important each neuron is for each modality, by each metric.

    Only prompts are read, in one forward a batch; activations are reduced as soon as they are
    there, so that memory does not grow with the number of samples.

    Args:
        model: The model.
        datasets: One data set, or several by name: samples, or what `HookedVLM.prepare` returns
            (for sounds, for example). Answers are not read.
        split: Which modalities are told apart.
        sites: One hook point in the MLP of each layer; "act" is the paper's neuron.
        rotated: Whether attention is computed from queries and keys after rotary positions, as in
            the authors' code, or before. It makes no difference where there are none.
        batch_size: How many samples run at once; scores do not depend on it.
        checkpoint: A folder for what is done so far, every few batches and when interrupted. The
            same call goes on from there, to the same scores. None writes nothing.
        on_batch: Called after each batch with the number of batches done and of all.

    Returns:
        The scores. A sample does not count that cannot be prepared (an image that is unreadable,
        for example) or whose activations are infinite or NaN: the notes say how many and why, and
        ``parameters["left_out"]`` which.

    Raises:
        ValueError, TypeError: An argument is not what it has to be, the checkpoint belongs to
            another model or to other arguments, or no sample of a data set counts.
        HookNameError: A site matches nothing.

    Warns:
        SamplesLeftOutWarning: Samples were left out.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> score(model, load_samples("shapes-llava", n=4))
        ModalityScores(text, special, image: 2,304 neurons at 6 hook points; 4 samples)
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of {list(SPLITS)}, got {split!r}")
    by_name, names = named(datasets), layer_sites(model, sites)
    parameters = {"split": split, "sites": names, "rotated": rotated, "batch_size": batch_size}
    passed = one_pass(
        model,
        by_name,
        {_NAME: Importances.of(split, rotated=rotated)},
        sites=names,
        about=parameters,
        run=Run(batch_size=batch_size, folder=checkpoint, kind="progress", on_batch=on_batch),
    )
    n_samples = {name: passed.n_samples.get(name, 0) for name in by_name}
    notes = [*passed.notes]
    if nothing := [name for name, n in n_samples.items() if not n]:
        raise ValueError(f"no sample of data set {nothing[0]!r} counts: {'; '.join(notes)}")
    states = {name: passed.of(_NAME, name) for name in by_name}
    n_with = {
        name: dict(zip(SPLITS[split], next(iter(of.values()))["with"].tolist(), strict=True))
        for name, of in states.items()
    }
    if never := [m for m in SPLITS[split] if not any(counts[m] for counts in n_with.values())]:
        notes.append(f"never in these data sets, and left out of selections: {', '.join(never)}")
    if silent := [name for name in names if not any(name in of for of in states.values())]:
        notes.append(f"never ran, so that nothing in them is important: {', '.join(silent)}")
    left_out = {name: list(passed.left_out.get(name, {})) for name in by_name}
    importance = aggregate(_together(states, names), n_samples).float()
    return ModalityScores(
        dict(zip(names, importance.unbind(-2), strict=True)),
        "MINER",
        axes={"metric": METRICS, "modality": SPLITS[split]},
        n_samples=n_samples,
        n_with=n_with,
        parameters={**parameters, "left_out": left_out, "provenance": provenance(model)},
        notes=tuple(notes),
    )


def _together(
    states: Mapping[str, Mapping[str, State]], names: list[str]
) -> dict[str, Float[Tensor, "metric modality layer neuron"]]:
    """Each data set's sums, all layers side by side; a layer that never ran has 0."""
    ran = {name: state["sum"] for of in states.values() for name, state in of.items()}
    sizes = {name: total.shape[-1] for name, total in ran.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"expected sites with the same number of neurons in every layer, got {sizes}: choose "
            "sites of one kind"
        )
    nothing = torch.zeros_like(next(iter(ran.values())))
    return {
        dataset: torch.stack([of[n]["sum"] if n in of else nothing for n in names], dim=2)
        for dataset, of in states.items()
    }

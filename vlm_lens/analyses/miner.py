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
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_lens.analyses.miner_inputs import Datasets, chunks_of, digest, named
from vlm_lens.analyses.miner_layers import layer_sites
from vlm_lens.analyses.miner_pass import Pass
from vlm_lens.analyses.miner_scores import SPLITS, WEIGHTS, ModalityScores, Split, Weights
from vlm_lens.analyses.progress import finish
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs import TokenMap
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.neurons.sites import Which
from vlm_lens.results import provenance
from vlm_lens.results.provenance import digest_of_weights

Strategy = Literal["adaptive", "LA_MU", "LU_MA", "uniform", "random"]


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


# Stage 4: selection -------------------------------------------------------------------------------


def select(
    scores: ModalityScores,
    *,
    ratio: int | float = 0.02,
    strategy: Strategy = "LA_MU",
    weights: Weights = WEIGHTS,
    seed: int = 2024,
) -> dict[str, NeuronSet]:
    """Stage 4: the neurons of each modality, best first.

    With K = int(ratio * layers * neurons a layer) and M modalities that occur:

    - "adaptive": the K neurons with the largest sum over modalities; each goes to the modality
      where it scores most, so that no neuron is in two sets.
    - "LA_MU" (layer-adaptive, modality-uniform): of each modality the best K // M.
    - "LU_MA" (layer-uniform, modality-adaptive): in each layer the best K // layers of all pairs of
      a neuron and a modality.
    - "uniform": in each layer of each modality the best K // (M * layers).
    - "random": K draws with replacement of a layer and a neuron, under the name "random"; a neuron
      that is drawn twice is in the set once.

    Args:
        scores: Of `score`.
        ratio: The share of all neurons that is selected, over all modalities.
        strategy: How.
        weights: Of the metrics prob, mean, max, attn_k and attn_q; see `ModalityScores.weighted`.
        seed: For "random".

    Returns:
        A set for each modality that occurs (with an adaptive strategy it may be empty).

    Raises:
        ValueError: The ratio is not above 0 and at most 1, selects no neuron at all, or the
            strategy or the weights are not what they have to be.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> scores = score(model, load_samples("shapes-llava", n=4))
        >>> {modality: len(found) for modality, found in select(scores).items()}
        {'text': 15, 'special': 15, 'image': 15}
    """
    matrix = scores.weighted(weights)  # the end of stage 3: metrics
    n_modalities, n_layers, n_neurons = matrix.shape
    if strategy not in get_args(Strategy):
        raise ValueError(f"expected a strategy of {list(get_args(Strategy))}, got {strategy!r}")
    if not 0 < ratio <= 1:
        raise ValueError(f"expected a ratio above 0 and at most 1, got {ratio!r}")
    k = int(ratio * n_layers * n_neurons)
    chosen: dict[str, list[int]] = {modality: [] for modality in scores.occurring}
    if strategy == "random":
        chosen = {"random": _random(k, n_layers, n_neurons, seed)}
    elif strategy == "adaptive":
        _adaptive(matrix, k, chosen)
    elif strategy == "LA_MU":
        for modality, values in zip(chosen, matrix, strict=True):
            chosen[modality] += _best(values, k // n_modalities)
    elif strategy == "LU_MA":
        _layer_uniform(matrix, k // n_layers, chosen)
    else:
        for modality, layers in zip(chosen, matrix, strict=True):
            for layer, values in enumerate(layers):
                best = _best(values, k // (n_modalities * n_layers))
                chosen[modality] += [layer * n_neurons + index for index in best]
    if not any(chosen.values()):
        raise ValueError(
            f"a ratio of {ratio} of {n_layers} x {n_neurons} neurons is {k}, which leaves none for "
            f"each of the {n_modalities} modalities by {strategy!r}: take a larger ratio"
        )
    return {
        modality: NeuronSet(
            (Neuron(scores.sites[i // n_neurons], i % n_neurons) for i in flat), sizes=scores.sizes
        )
        for modality, flat in chosen.items()
    }


def _best(values: Float[Tensor, "*axes"], k: int) -> list[int]:
    """The places of the k largest values, in the flattened tensor; the first of equal ones."""
    return values.flatten().argsort(descending=True, stable=True)[:k].tolist()


def _adaptive(
    matrix: Float[Tensor, "modality layer neuron"], k: int, chosen: dict[str, list[int]]
) -> None:
    flat = matrix.flatten(1)
    owners = list(chosen)
    for place in _best(flat.sum(0), k):
        chosen[owners[_best(flat[:, place], 1)[0]]].append(place)


def _layer_uniform(
    matrix: Float[Tensor, "modality layer neuron"], k: int, chosen: dict[str, list[int]]
) -> None:
    n_neurons, owners = matrix.shape[-1], list(chosen)
    for layer in range(matrix.shape[1]):
        for place in _best(matrix[:, layer], k):
            modality, index = divmod(place, n_neurons)
            chosen[owners[modality]].append(layer * n_neurons + index)


def _random(k: int, n_layers: int, n_neurons: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(n_layers * n_neurons, (k,), generator=generator).tolist()


# All samples --------------------------------------------------------------------------------------


@torch.no_grad()
def score(
    model: HookedVLM,
    datasets: Datasets,
    *,
    split: Split = "special_text_separate",
    sites: Which | NamesFilter = "act",
    rotated: bool = True,
    batch_size: int = 8,
    checkpoint: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
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
        LeftOutWarning: Samples were left out.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> score(model, load_samples("shapes-llava", n=4))
        ModalityScores(text, special, image: 2,304 neurons at 6 hook points; 4 samples)
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of {list(SPLITS)}, got {split!r}")
    by_name = named(datasets)
    chunks, names = chunks_of(by_name, batch_size), layer_sites(model, sites)
    parameters = {"split": split, "sites": names, "rotated": rotated, "batch_size": batch_size}
    belongs_to: dict[str, Any] = parameters
    if checkpoint is not None:
        identity = {"model": digest_of_weights(model.hf_model), "data": digest(by_name)}
        belongs_to = {**parameters, **identity}
    one_pass = Pass(model, names, chunks, partial(separate, split=split), measure, rotated=rotated)
    progress = finish(
        one_pass.step,
        n_batches=len(chunks),
        checkpoint=checkpoint,
        belongs_to=belongs_to,
        on_batch=on_batch,
    )
    found = one_pass.result(progress, SPLITS[split])
    left_out = {"left_out": found.left_out, "provenance": provenance(model)}
    return ModalityScores(
        importance=aggregate(found.sums, found.n_samples).float(),
        modalities=SPLITS[split],
        sites=tuple(names),
        n_samples=found.n_samples,
        n_with=found.n_with,
        parameters={**parameters, **left_out},
        notes=found.notes,
    )

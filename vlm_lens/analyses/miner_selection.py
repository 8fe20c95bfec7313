"""MINER's fourth stage: a share of all neurons, for each modality.

Ties go to the lower layer and index, and random numbers are PyTorch's; both are ours. See
`vlm_lens.analyses.miner`.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.analyses.miner_scores import WEIGHTS, ModalityScores, Weights
from vlm_lens.neurons import Neuron, NeuronSet

Strategy = Literal["adaptive", "LA_MU", "LU_MA", "uniform", "random"]


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
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.analyses.miner import score
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
    sites = list(scores)
    return {
        modality: NeuronSet(
            (Neuron(sites[i // n_neurons], i % n_neurons) for i in flat), sizes=scores.sizes
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

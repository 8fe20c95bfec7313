"""MINER the slow and obvious way: one sample, one layer, one neuron set at a time, in float64.

Nothing here uses our hooks or token maps: activations come from PyTorch hooks on Hugging Face's
activation functions, rotated queries and keys from Hugging Face's own rotation.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from vlm_lens import HookedVLM, Sample

METRICS = ["prob", "mean", "max", "attn_k", "attn_q"]
MODALITIES = {
    "prompt": ["prompt"],
    "special_text_as_one": ["special_text", "image", "video", "audio"],
    "special_text_separate": ["text", "special", "image", "video", "audio"],
}
ROTATION = "apply_rotary_pos_emb"
"""What every one of these families calls the function that rotates queries and keys."""

Layer = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Activations [token, neuron], rotated queries and keys [head, token, d_head]."""


def importances(
    model: HookedVLM, sample: Sample, split: str, *, rotated: bool = True
) -> np.ndarray:
    """One sample's importances [metric, modality, layer, neuron]."""
    inputs = model.prepare(text=sample.text, images=sample.images or None)
    sets = token_sets(model, inputs["input_ids"][0].tolist())
    layers = run(model.hf_model, dict(inputs), rotated=rotated)
    found = np.zeros((5, len(MODALITIES[split]), len(layers), layers[0][0].shape[1]))
    for layer, (activations, queries, keys) in enumerate(layers):
        attends = attention(queries, keys)
        for place, modality in enumerate(MODALITIES[split]):
            chosen = sets[modality]
            if chosen:
                values = metrics(activations[chosen], attends[np.ix_(chosen, chosen)])
                found[:, place, layer] = np.stack([min_max(value) for value in values])
    return found


def token_sets(model: HookedVLM, ids: Sequence[int]) -> dict[str, list[int]]:
    """The positions of each modality, from the token ids."""
    image = model.hf_model.config.image_token_id
    special_ids = {*model.tokenizer.all_special_ids} - {image}
    images = [i for i, token in enumerate(ids) if token == image]
    special = [i for i, token in enumerate(ids) if token in special_ids]
    text = sorted(set(range(len(ids))) - {*images, *special})
    return {
        "text": text,
        "special": special,
        "special_text": sorted([*text, *special]),
        "image": images,
        "video": [],
        "audio": [],
        "prompt": list(range(len(ids))),
    }


@torch.no_grad()
def run(hf: Any, inputs: dict[str, Any], *, rotated: bool) -> list[Layer]:
    """What each layer of the language model computes."""
    blocks = list(hf.model.language_model.layers)
    module = sys.modules[type(blocks[0].self_attn).__module__]
    theirs = getattr(module, ROTATION)
    activations: list[np.ndarray] = []
    heads: list[tuple[np.ndarray, np.ndarray]] = []

    def rotate(queries, keys, *args, **kwargs):
        turned = theirs(queries, keys, *args, **kwargs)
        kept = turned if rotated else (queries, keys)
        heads.append((kept[0][0].double().numpy(), kept[1][0].double().numpy()))
        return turned

    with ExitStack() as stack:
        stack.enter_context(patch.object(module, ROTATION, rotate))
        for block in blocks:
            hook = block.mlp.act_fn.register_forward_hook(
                lambda _module, _args, out: activations.append(out[0].double().numpy())
            )
            stack.callback(hook.remove)
        hf(**inputs, use_cache=False)
    return [(a, *pair) for a, pair in zip(activations, heads, strict=True)]


def attention(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The mean over heads of softmax(QK^T / sqrt(d)), without a mask."""
    n_heads, n_tokens, d_head = queries.shape
    group = n_heads // len(keys)
    total = np.zeros((n_tokens, n_tokens))
    for head in range(n_heads):
        total += softmax(queries[head] @ keys[head // group].T / d_head**0.5, axis=1)
    return total / n_heads


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def metrics(own: np.ndarray, attends: np.ndarray) -> list[np.ndarray]:
    """The five metrics of one set of tokens, as the formulas have them, not yet normalised."""
    return [
        (own > 0).mean(0),
        own.mean(0),
        own.max(0),
        (softmax(attends, axis=0).T @ own).sum(0),
        (softmax(attends, axis=1) @ own).sum(0),
    ]


def min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.zeros_like(values) if high == low else (values - low) / (high - low)


def aggregate(datasets: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Over the importances of each data set's samples."""
    means = [sum(samples) / len(samples) for samples in datasets]
    total = sum(means)
    for modality in range(total.shape[1]):
        times = sum(mean[:, modality].sum() != 0 for mean in means)
        if times:
            total[:, modality] = total[:, modality] / times
    return total


def select(
    matrix: np.ndarray, names: Sequence[str], ratio: float, strategy: str
) -> dict[str, list[tuple[int, int]]]:
    """(layer, neuron) pairs of each modality, from weighted scores [modality, layer, neuron]."""
    n_modalities, n_layers, n_neurons = matrix.shape
    k = int(ratio * n_layers * n_neurons)
    chosen: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    pairs = [(layer, i) for layer in range(n_layers) for i in range(n_neurons)]

    def best(candidates: list, score: Any, count: int) -> list:
        return sorted(candidates, key=lambda c: -score(c))[:count]  # stable: the first of equals

    if strategy == "adaptive":
        for layer, i in best(pairs, lambda p: matrix[:, p[0], p[1]].sum(), k):
            chosen[names[int(matrix[:, layer, i].argmax())]].append((layer, i))
    elif strategy == "LA_MU":
        for m, name in enumerate(names):
            chosen[name] = best(pairs, lambda p, m=m: matrix[m, p[0], p[1]], k // n_modalities)
    elif strategy == "LU_MA":
        for layer in range(n_layers):
            both = [(m, i) for m in range(n_modalities) for i in range(n_neurons)]
            for m, i in best(both, lambda p, at=layer: matrix[p[0], at, p[1]], k // n_layers):
                chosen[names[m]].append((layer, i))
    elif strategy == "uniform":
        for m, name in enumerate(names):
            for layer in range(n_layers):
                here = [(layer, i) for i in range(n_neurons)]
                count = k // (n_modalities * n_layers)
                chosen[name] += best(here, lambda p, m=m: matrix[m, p[0], p[1]], count)
    return chosen

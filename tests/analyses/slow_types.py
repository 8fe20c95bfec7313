"""Types of neurons the slow and obvious way: one neuron, one sample, one token at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from torch import Tensor

from tests.statistics.slow import Record, chosen, records
from vlm_lens.data import Sample


@dataclass
class Slow:
    """One site: counts of visual, text, multi-modal and unknown samples a neuron, and the rest."""

    counts: list[list[int]]
    maxima: Tensor
    tails: Tensor


def slow_types(
    name: str,
    samples: Sequence[Sample],
    *,
    top_samples: int = 50,
    T_v: float = 2.0,
    n_v: int = 4,
    T_t: float = 3.0,
    n_t: int = 2,
    comparison: str = ">=",
    text_tokens: str = "answer text",
    maximum_over: str | None = None,
    answers: str | None = "own",
    **_: Any,
) -> dict[str, Slow]:
    """By site of the language model."""
    found = {}
    over = maximum_over or f"image+{text_tokens}"
    need = (n_v, n_t) if comparison == ">=" else (n_v + 1, n_t + 1)
    for site, by_sample in records(name, samples, answers=answers).items():
        if not site.startswith("blocks"):
            continue
        there = [record for record in by_sample if record is not None]
        n_neurons = there[0].values.shape[1]
        counts, maxima, tails = [], [], []
        for neuron in range(n_neurons):
            peaks = [float(r.values[chosen(r, over), neuron].max()) for r in there]
            top = sorted(range(len(there)), key=lambda i: (-peaks[i], i))[:top_samples]
            largest = max(peaks)
            seen, chances = [0, 0, 0, 0], []
            for i in top:
                visual = scaled(there[i], "image", neuron, largest)
                text = scaled(there[i], text_tokens, neuron, largest)
                seen[kind_of(visual, text, (T_v, T_t), need)] += 1
                chances.append(by_drawing(visual, text, (T_v, T_t), need))
            counts.append(seen)
            maxima.append(largest)
            tails.append([at_least(seen[k], [c[k] for c in chances]) for k in range(4)])
        found[site] = Slow(counts, torch.tensor(maxima).double(), torch.tensor(tails).double().T)
    return found


def scaled(record: Record, token_type: str, neuron: int, largest: float) -> list[float]:
    """Activations of a type's tokens, from 0 to 10."""
    values = record.values[chosen(record, token_type), neuron].tolist()
    return [max(value, 0.0) / largest * 10 if largest > 0 else 0.0 for value in values]


def kind_of(
    visual: list[float], text: list[float], T: tuple[float, float], need: tuple[int, int]
) -> int:
    """0 for a visual sample, 1 for text, 2 for both, 3 for neither."""
    is_visual = sum(value > T[0] for value in visual) >= need[0]
    is_text = sum(value > T[1] for value in text) >= need[1]
    return {(True, False): 0, (False, True): 1, (True, True): 2, (False, False): 3}[
        is_visual, is_text
    ]


def by_drawing(
    visual: list[float], text: list[float], T: tuple[float, float], need: tuple[int, int]
) -> list[float]:
    """The share of each kind among all ways to call as many of the tokens visual."""
    pool = visual + text
    both = sum(value > max(T) for value in pool)
    between = sum(value > min(T) for value in pool) - both
    below = len(pool) - both - between
    ways = [0, 0, 0, 0]
    for i in range(both + 1):  # of these many are called visual
        for j in range(between + 1):
            k = len(visual) - i - j
            if not 0 <= k <= below:
                continue
            n_visual = i + j if T[0] <= T[1] else i
            n_text = (both - i) if T[0] <= T[1] else (both - i) + (between - j)
            is_visual, is_text = n_visual >= need[0], n_text >= need[1]
            kind = [[3, 1], [0, 2]][is_visual][is_text]
            ways[kind] += comb(both, i) * comb(between, j) * comb(below, k)
    return [way / comb(len(pool), len(visual)) for way in ways]


def at_least(n: int, chances: list[float]) -> float:
    """How likely n or more of independent things happen."""
    likely = [1.0]
    for chance in chances:
        likely = [
            (likely[i] if i < len(likely) else 0.0) * (1 - chance)
            + (likely[i - 1] if i else 0.0) * chance
            for i in range(len(likely) + 1)
        ]
    return sum(likely[n:])

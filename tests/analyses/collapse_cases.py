"""Planted models and rankings, and where masking one more neuron at a time sees them collapse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tests.analyses.planted import ALWAYS, ANSWER, SPIKE, UNIT, blank, plant_gate, plant_spike
from tests.analyses.planted import samples as asked
from tests.masking.reference import Slow
from tests.tiny import SPECIAL, WORDS, Tiny
from vlm_lens import NeuronSet
from vlm_lens.analyses.collapse import find_collapse
from vlm_lens.analyses.collapse_search import SearchOptions
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.neurons.neuron import Neuron
from vlm_lens.passes.batch import Batch, make_batches

GATE, DOWN = "blocks.2.mlp.hook_pre", "blocks.0.hook_mlp_out"
TOKENS = 3
SAMPLES = asked(4)
IMAGE_TOKEN = SPECIAL.index("<image>")


# Planted models -----------------------------------------------------------------------------------


@torch.no_grad()
def plant_shares(tiny: Tiny, shares: dict[int, float], *, needed: float) -> None:
    """Units of the last block that are always on, each with a share in what speaks for "red".

    Where the shares that are left sum up to less than is needed, another word is said.
    """
    *_, last = tiny.hf.model.language_model.layers
    for unit, share in shares.items():
        for linear in (last.mlp.gate_proj, last.mlp.up_proj):
            linear.weight[unit] = 0.0
            linear.weight[unit, ALWAYS] = 4.0
        last.mlp.down_proj.weight[:, unit] = 0.0
        last.mlp.down_proj.weight[ANSWER, unit] = share
    _, kept = tiny.model.run_with_cache("what color ?", names_filter="blocks.2.hook_mlp_out")
    full = kept["blocks.2.hook_mlp_out"][0, -1, ANSWER] / sum(shares.values())
    red = tiny.hf.lm_head.weight[len(SPECIAL) + WORDS.index("red")]
    red[ANSWER], red[ALWAYS] = 2.0, -2.0 * full * needed


def gate() -> Tiny:
    built = blank()
    plant_gate(built)
    return built


def spike() -> Tiny:
    built = blank()
    plant_spike(built)
    return built


def group() -> Tiny:
    """Forty units say the same, and a third of them would do."""
    built = blank()
    plant_shares(built, dict.fromkeys(range(40), 1 / 40), needed=1 / 3)
    return built


def dent() -> Tiny:
    """It collapses without unit 0, not without 0 and 1, and again without 0, 1 and 2."""
    built = blank()
    plant_shares(built, {0: 2.0, 1: -2.0, 2: 1.0}, needed=0.5)
    return built


PLANTS: dict[str, Callable[[], Tiny]] = {"gate": gate, "spike": spike, "group": group, "dent": dent}


@cache
def planted(plant: str) -> Tiny:
    return PLANTS[plant]()


FILLERS = {
    "vision_encoder.blocks.1.mlp.hook_pre": 48,
    "blocks.0.hook_mlp_out": 32,
    "blocks.1.mlp.hook_pre_linear": 64,
}
SIZES = {**FILLERS, GATE: 64, "blocks.0.mlp.hook_pre": 64, "projector.mlp.hook_pre": 32}


@cache
def others(n: int, *, seed: int = 0) -> list[Neuron]:
    """Random neurons, but none of those that are planted."""
    every = [Neuron(name, i) for name, size in FILLERS.items() for i in range(size) if i != SPIKE]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))
    return [every[i] for i in order[:n].tolist()]


def units(*indices: int) -> list[Neuron]:
    return [Neuron(GATE, index) for index in indices]


def ranked(*neurons: Neuron) -> NeuronSet:
    return NeuronSet(neurons, sizes=SIZES)


@dataclass(frozen=True)
class Case:
    """A planted model, and a ranking of its neurons."""

    plant: str
    ranking: tuple[Neuron, ...]
    first_token: bool = True

    @property
    def neurons(self) -> NeuronSet:
        return ranked(*self.ranking)


few = others(25)
many = [neuron for neuron in others(90, seed=1) if neuron not in few][:45]
shared = tuple(n for pair in zip(units(*range(40)), many[:40], strict=True) for n in pair)
CASES = {
    "gate, first": Case("gate", (*units(UNIT), *few)),
    "gate, late": Case("gate", (*few[:20], *units(UNIT), *few[20:])),
    "no planted neuron": Case("gate", tuple(many)),
    "group": Case("group", tuple(units(*range(40)))),
    "group among others": Case("group", shared),
    "spike, channel": Case("spike", (few[0], Neuron(DOWN, SPIKE), *few[1:12])),
    "spike, unit": Case("spike", (*few[:5], Neuron("blocks.0.mlp.hook_pre", UNIT), *few[5:12])),
    "spike, but of the first token": Case("spike", (Neuron(DOWN, SPIKE), *few[:12]), False),
    "dent at 16": Case("dent", (*few[:15], *units(0, 1), *few[15:20])),
    "dent at 20 to 22": Case(
        "dent", (*few[:19], *units(0), *few[19:21], *units(1), *many[:9], *units(2), *many[9:12])
    ),
}
EXPECTED = {
    "gate, first": 1,
    "gate, late": 21,
    "no planted neuron": None,
    "group": 22,
    "group among others": 41,
    "spike, channel": 2,
    "spike, unit": 6,
    "spike, but of the first token": None,
    "dent at 16": 16,
    "dent at 20 to 22": 20,
}
MONOTONE = [name for name in CASES if "dent" not in name]


# The slow way -------------------------------------------------------------------------------------


@cache
def naive(case: Case, max_k: int) -> list[dict[str, float]]:
    """Masks one neuron more at a time and runs everything again, until the model collapses."""
    model = planted(case.plant).model
    slow = Slow(model, max_new_tokens=TOKENS, never=[IMAGE_TOKEN])
    clean = [slow.answer(sample) for sample in SAMPLES]
    words = [slow.text(sample).split() for sample in SAMPLES]
    slow.options = {"first_token": case.first_token}
    found: list[dict[str, float]] = []
    for k in range(max_k + 1):
        neurons = case.ranking[:k]
        losses = [slow.nll(s, a, neurons) for s, a in zip(SAMPLES, clean, strict=True)]
        mean = sum(nll for nll, _ in losses) / sum(n for _, n in losses)
        found.append({"perplexity": math.exp(mean)})
        ratio = found[k]["perplexity"] / found[0]["perplexity"]
        if ratio >= 10:
            masked = [slow.text(sample, neurons).split() for sample in SAMPLES]
            overlap = [same_words(a, b) for a, b in zip(masked, words, strict=True)]
            found[k]["similarity"] = sum(overlap) / len(overlap)
            if found[k]["similarity"] <= 0.3:
                return found
    return found


def same_words(words: list[str], others: list[str]) -> float:
    if not words or not others:
        return float(words == others)
    shared = sum(min(words.count(word), others.count(word)) for word in set(words))
    return 2 * shared / (len(words) + len(others))


def naive_k(case: Case) -> int | None:
    curve = naive(case, len(case.ranking))
    return len(curve) - 1 if curve[-1].get("similarity", 1.0) <= 0.3 else None


# The fast way -------------------------------------------------------------------------------------


@cache
def batches(plant: str, batch_size: int = 16) -> list[Batch]:
    return make_batches(planted(plant).model, SAMPLES, batch_size=batch_size, max_new_tokens=TOKENS)


def found_in(
    case: Case, *, batch_size: int = 16, model: Any = None, **options: Any
) -> CriticalNeurons:
    options = {"first_token": case.first_token, "max_new_tokens": TOKENS, **options}
    return find_collapse(
        model or planted(case.plant).model,
        batches(case.plant, batch_size),
        case.neurons,
        method="planted",
        options=SearchOptions(**options),
    )


def slow_answers(plant: str) -> Slow:
    return Slow(planted(plant).model, max_new_tokens=TOKENS, never=[IMAGE_TOKEN])

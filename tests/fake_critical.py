"""Results of a search for critical neurons as one could be, made up from a formula."""

from __future__ import annotations

import math
from typing import Any

from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.neurons.places import matrices_of

ANSWERS = ("a red circle", "two", "yes", "the blue square on the left")
PROMPTS = tuple(f"<image>\nUSER: question {i} ?" for i in range(len(ANSWERS)))
REFERENCES = ("a red circle", "2", "yes", None)

N_LAYERS = {"blocks": 8, "vision_encoder.blocks": 6}
SITES = {
    "blocks": {"mlp.hook_pre": 344, "mlp.hook_pre_linear": 344, "hook_mlp_out": 128},
    "vision_encoder.blocks": {"mlp.hook_pre": 256, "hook_mlp_out": 64},
}
SIZES = {
    f"{blocks}.{layer}.{site}": size
    for blocks, sites in SITES.items()
    for layer in range(N_LAYERS[blocks])
    for site, size in sites.items()
} | {"projector.mlp.hook_pre": 96, "projector.hook_out": 128}

MATRICES = matrices_of(list(SIZES), list(SIZES))


def ranking(n: int) -> NeuronSet:
    """Neurons as they are often ranked: most in the second layer's down projection."""
    often = ["blocks.1.hook_mlp_out"] * 3 + ["blocks.6.hook_mlp_out", "blocks.1.mlp.hook_pre"]
    places = often + ["projector.hook_out", "vision_encoder.blocks.4.mlp.hook_pre"]
    best = [Neuron(places[i % 7], (i * 37) % SIZES[places[i % 7]]) for i in range(100)]
    rest = [Neuron(name, index) for name, size in SIZES.items() for index in range(size)]
    return NeuronSet([*best, *rest], sizes=SIZES)[:n]


def measurement(k: int, *, collapse_at: float, infinite_from: float = math.inf) -> Measurement:
    """A perplexity that rises slowly and then jumps, and answers that get lost."""
    share = k / collapse_at
    ratio = 1 + share**2 + (30 * share**1.5 if share >= 1 else 0)
    if k >= infinite_from:
        ratio = math.inf
    kept = 1 / (1 + (1.2 * share) ** 4)
    metrics = {
        "perplexity": 1.4 * ratio,
        "perplexity_ratio": ratio,
        "agreement": kept,
        "own_perplexity": math.nan if k >= infinite_from else 1.3 + share,
        "clean_perplexity": 1.3 * ratio**1.5,
        "similarity": kept**0.8,
    }
    return Measurement(k, metrics, ratio >= 10, answers(share) if k % 2 == 0 else None)


def answers(share: float) -> tuple[str, ...]:
    if share < 0.4:
        return ANSWERS
    if share < 1:
        return (*ANSWERS[:2], "no", "the red square on the left")
    return ("<image><image><image>", "", "</script><b>red", "the the the the the the the the")


def result(
    *,
    k: int | None = 12,
    ks: tuple[int, ...] = (0, 1, 2, 4, 6, 7, 8, 10, 11, 12, 13, 14, 16),
    onset: int | None = 7,
    method: str = "CAN",
    **changes: Any,
) -> CriticalNeurons:
    """A result that collapses at `k`; ``infinite_from`` says from where nothing is finite."""
    infinite_from = changes.pop("infinite_from", math.inf)
    at = 40.0 * ks[-1] if k is None else float(k)
    given: dict[str, Any] = {
        "method": method,
        "k": k,
        "ranking": ranking(max(ks)),
        "curve": tuple(
            measurement(each, collapse_at=at, infinite_from=infinite_from) for each in ks
        ),
        "stages": Stages(onset, k, "Degradation begins at agreement <= 0.95; collapse at <10x>."),
        "is_monotone": True,
        "prompts": PROMPTS,
        "references": REFERENCES,
        "parameters": {
            "collapse": ["perplexity_ratio >= 10", "similarity <= 0.3"],
            "degraded": "agreement <= 0.95",
            "model": "shapes-llava",
        },
        "sizes": SIZES,
        "matrices": MATRICES,
    }
    return CriticalNeurons(**(given | changes))

"""What a search measures: each metric by hand, and as the criterion of collapse."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.analyses.planted import (
    ANSWER,
    samples,
)
from tests.analyses.planted_tables import (
    SHORT,
    built,
    down,
    scored,
)
from tests.masking.reference import Slow
from tests.tiny import build_tokenizer
from vlm_lens import NeuronSet
from vlm_lens.analyses import can
from vlm_lens.data import Sample
from vlm_lens.masking import (
    ACCURACY,
    AGREEMENT,
    CLEAN_PERPLEXITY,
    OWN_PERPLEXITY,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    Criterion,
    Metric,
    clip_score,
    similarity,
    word_overlap,
)
from vlm_lens.results.scores import Scores

N_TOKENS = SHORT["max_new_tokens"]
IMAGE_TOKEN = 4


def find(name: str, scores: Scores | NeuronSet | None = None, **options: Any):
    ranking = scored(name) if scores is None else scores
    return can.find_critical(built(name).model, samples(), ranking, **{**SHORT, **options})


@cache
def clip() -> tuple[CLIPModel, CLIPProcessor]:
    """A random one, which knows the words of the tiny models."""
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 8
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 8}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)).eval()
    side = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side)
    return model, CLIPProcessor(images, tokenizer)


METRICS = {
    "perplexity of a given answer": (PERPLEXITY, {"at_least": 100.0}),
    "perplexity ratio": (PERPLEXITY_RATIO, {"at_least": 10.0}),
    "perplexity of its own text": (OWN_PERPLEXITY, {"at_least": 1.5}),
    "perplexity of its own text under the clean model": (CLEAN_PERPLEXITY, {"at_least": 50.0}),
    "agreement": (AGREEMENT, {"at_most": 0.1}),
    "accuracy": (ACCURACY, {"at_most": 0.0}),
    "caption similarity": (similarity(), {"at_most": 0.3}),
    "another similarity": (
        similarity(lambda a, b: [float(x == y) for x, y in zip(a, b, strict=True)], name="same"),
        {"at_most": 0.5},
    ),
    "CLIPScore": (clip_score(*clip()), {"at_most": 1.0}),
}


@pytest.mark.sampled
@pytest.mark.parametrize("what", METRICS)
def test_each_metric_can_be_measured_and_be_the_criterion(what: str):
    metric, limits = METRICS[what]
    target = "answer" if what == "perplexity of a given answer" else "own"
    criterion = Criterion(metric, **limits)
    measured = find("gate", target=target, metrics=(metric,), max_k=2)
    assert all(metric.name in m.metrics for m in measured.curve)
    assert measured.parameters["metrics"] == [metric.name]
    judged = find("gate", target=target, collapse=(criterion,), max_k=2)
    assert judged.parameters["collapse"] == [str(criterion)]
    values = {m.k: m.metrics[metric.name] for m in measured.curve}
    assert {m.k: m.metrics[metric.name] for m in judged.curve} == values
    passing = [k for k, value in values.items() if criterion.is_met(value)]
    assert judged.k == (min(passing, default=0) or None)  # at 0 nothing is masked
    first = find("gate", target=target, metrics=(metric,), degraded=criterion, max_k=2)
    assert first.stages.onset == judged.k


def test_metrics_are_what_they_are_called():
    """Each by hand, without the neuron that says "red"."""
    tiny, name = built("gate"), "blocks.2.hook_mlp_out"
    asked = [*samples(4), Sample([], "what is two ?", answer="red red red red")]
    critical = NeuronSet([down(2, ANSWER)], sizes={name: 32})
    metrics = (OWN_PERPLEXITY, CLEAN_PERPLEXITY, ACCURACY, similarity())
    found = can.find_critical(
        tiny.model, asked, critical, target="answer", metrics=metrics, **SHORT
    )
    slow = Slow(tiny.model, max_new_tokens=N_TOKENS, never=[IMAGE_TOKEN])
    for measured, masked in zip(found.curve, (NeuronSet(), critical), strict=True):
        tokens = [slow.answer(sample, masked) for sample in asked]
        texts = [slow.text(sample, masked) for sample in asked]
        of_given = [(s, str(s.answer), masked) for s in asked]
        of_own = [(s, t, masked) for s, t in zip(asked, tokens, strict=True)]
        under_clean = [(s, t, NeuronSet()) for s, t in zip(asked, tokens, strict=True)]
        expected = {
            "perplexity": slow_perplexity(slow, of_given),
            "own_perplexity": slow_perplexity(slow, of_own),
            "clean_perplexity": slow_perplexity(slow, under_clean),
            "accuracy": sum(t == s.answer for t, s in zip(texts, asked, strict=True)) / len(asked),
            "similarity": sum(word_overlap(texts, [slow.text(s) for s in asked])) / len(asked),
        }
        assert {key: measured.metrics[key] for key in expected} == pytest.approx(expected, rel=1e-4)
        if masked:
            assert measured.answers == tuple(texts)


def slow_perplexity(slow: Slow, parts: list[tuple[Sample, Any, NeuronSet]]) -> float:
    nll, n = map(sum, zip(*(slow.nll(*part) for part in parts), strict=True))
    return math.exp(nll / n)


def test_perplexities_disagree_when_a_model_repeats_itself():
    """Without the spike the model is sure of what the clean one finds unlikely."""
    found = find("spike", metrics=(OWN_PERPLEXITY, CLEAN_PERPLEXITY), max_k=1)
    _, collapsed = found.curve
    assert collapsed.metrics["own_perplexity"] < 5
    assert collapsed.metrics["clean_perplexity"] > 2 * collapsed.metrics["own_perplexity"]


def test_a_metric_of_ones_own():
    lengths = Metric("words", lambda run: sum(len(a.split()) for a in run.answers) / 100)
    found = find("gate", metrics=(lengths,), collapse=(Criterion(lengths, at_most=0.0),), max_k=3)
    assert found.k is None
    assert found.curve[0].metrics["words"] == 6 * N_TOKENS / 100

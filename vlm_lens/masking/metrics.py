"""How well a masked model still speaks, and when it has collapsed.

Perplexities disagree when a model repeats itself: its own text then looks likely to itself and
unlikely to the clean model, which is why there are three of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlm_lens.masking.runs import Losses, MaskedRun

Similarity = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""From two lists of texts, how alike each pair is, from 0 to 1."""


@dataclass(frozen=True)
class Metric:
    """A number about a masked model.

    Attributes:
        name: What it is called in tables; perplexities have "perplexity" in their name, all others
            are shares from 0 to 1.
        of: Measures it.
        generates: Whether that asks for answers of the masked model.
    """

    name: str
    of: Callable[[MaskedRun], float]
    generates: bool = True


@dataclass(frozen=True)
class Criterion:
    """A metric and the threshold that counts as collapse.

    Attributes:
        metric: What is measured.
        at_least: Met from this value up, and by what is not finite.
        at_most: Or: met from this value down.
    """

    metric: Metric
    at_least: int | float | None = None
    at_most: int | float | None = None

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.at_least, self.at_most) if limit is not None]
        if len(limits) != 1:
            raise ValueError(
                f"a criterion on {self.metric.name!r} needs at_least or at_most, one of them, got "
                f"at_least={self.at_least} and at_most={self.at_most}"
            )
        if math.isnan(limits[0]):
            raise ValueError(f"expected a threshold on {self.metric.name!r}, got nan")

    def is_met(self, value: float) -> bool:
        """Whether a value counts as collapse; one that is not a number does."""
        if not math.isfinite(value):
            return True
        return value >= self.at_least if self.at_least is not None else value <= self.at_most  # type: ignore[operator]

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"{self.metric.name} >= {self.at_least:g}"
        return f"{self.metric.name} <= {self.at_most:g}"


def _mean_perplexity(losses: Losses) -> float:
    mean = float(losses.nll.sum() / losses.n_tokens.sum())
    return math.exp(mean) if mean < 700 else math.inf


def _perplexity(run: MaskedRun) -> float:
    return _mean_perplexity(run.losses)


def _perplexity_ratio(run: MaskedRun) -> float:
    return _perplexity(run) / _perplexity(run.reference)


def _own_perplexity(run: MaskedRun) -> float:
    return _mean_perplexity(run.runs.losses_of(run.k, run.generated))


def _clean_perplexity(run: MaskedRun) -> float:
    return _mean_perplexity(run.runs.losses_of(0, run.generated))


def _agreement(run: MaskedRun) -> float:
    return float(run.losses.is_greedy.double().mean())


def _accuracy(run: MaskedRun) -> float:
    references = [sample.answer for batch in run.runs.batches for sample in batch.samples]
    pairs = [(a, r) for a, r in zip(run.answers, references, strict=True) if r is not None]
    if not pairs:
        raise ValueError(
            "expected samples with answers to measure accuracy, got none with one: give them "
            "answers, or leave the metric out"
        )
    return sum(_words(answer) == _words(reference) for answer, reference in pairs) / len(pairs)


PERPLEXITY = Metric("perplexity", _perplexity, generates=False)
"""Of the scored answers under the masked model, over all tokens of all samples."""

PERPLEXITY_RATIO = Metric("perplexity_ratio", _perplexity_ratio, generates=False)
"""That, over the same of the clean model; its log10 is PCICN's Delta."""

OWN_PERPLEXITY = Metric("own_perplexity", _own_perplexity)
"""Of what the masked model generates, under the masked model."""

CLEAN_PERPLEXITY = Metric("clean_perplexity", _clean_perplexity)
"""Of what the masked model generates, under the clean model."""

AGREEMENT = Metric("agreement", _agreement, generates=False)
"""Share of the scored answers that the masked model would generate greedily, word for word."""

ACCURACY = Metric("accuracy", _accuracy)
"""Share of masked answers with the words of the sample's answer."""


def similarity(alike: Similarity | None = None, *, name: str = "similarity") -> Metric:
    """How alike masked and clean answers are, on the mean.

    Args:
        alike: Compares two lists of texts pair by pair, for example by a sentence encoder; by
            default `word_overlap`, which needs no other model.
        name: What the metric is called.

    Example:
        >>> similarity().name
        'similarity'
    """
    alike = alike or word_overlap

    def of(run: MaskedRun) -> float:
        values = alike(run.answers, run.reference.answers)
        return sum(map(float, values)) / len(values)

    return Metric(name, of)


def word_overlap(texts: Sequence[str], others: Sequence[str]) -> list[float]:
    """F1 of the words that two texts share, as often as both have them, case ignored.

    The measure of SQuAD (Rajpurkar et al. 2016, section 6), without its removal of articles.

    Example:
        >>> word_overlap(["a red circle", ""], ["a blue circle", "no"])
        [0.6666666666666666, 0.0]
    """
    return [_f1(_words(a), _words(b)) for a, b in zip(texts, others, strict=True)]


def _words(text: str) -> list[str]:
    return text.lower().split()


def _f1(words: list[str], others: list[str]) -> float:
    if not words or not others:
        return float(words == others)
    shared = sum((Counter(words) & Counter(others)).values())
    return 2 * shared / (len(words) + len(others))


def clip_score(model: Any, processor: Any, *, name: str = "clip_score") -> Metric:
    """CLIPScore: how well masked answers fit their images, without a reference.

    Mean over samples of ``max(0, cos(image, answer))`` (Hessel et al. 2021, section 3; their factor
    of 2.5 left out, so that it is from 0 to 1). Of several images of a sample the first counts.

    Args:
        model: A Hugging Face `CLIPModel`.
        processor: Its processor.
        name: What the metric is called.
    """

    @torch.no_grad()
    def of(run: MaskedRun) -> float:
        samples = [sample for batch in run.runs.batches for sample in batch.samples]
        pairs = [(s.images[0], a) for s, a in zip(samples, run.answers, strict=True) if s.images]
        if not pairs:
            raise ValueError("CLIPScore needs samples with images, got none")
        images, answers = zip(*pairs, strict=True)
        inputs = processor(
            images=list(images),
            text=list(answers),
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(model.device)
        out = model(**inputs)
        cosine = torch.cosine_similarity(out.image_embeds, out.text_embeds)
        return float(cosine.clamp(min=0).mean())

    return Metric(name, of)


COLLAPSE = (Criterion(PERPLEXITY_RATIO, at_least=10.0), Criterion(similarity(), at_most=0.3))
"""Perplexity up tenfold, and answers unlike the clean ones: both thresholds are ours (CAN gives
none); 10 is PCICN's epsilon of 1 in log10."""

DEGRADED = Criterion(AGREEMENT, at_most=0.95)
"""Expressive degradation begins where at least 5% of the answers have changed; ours."""

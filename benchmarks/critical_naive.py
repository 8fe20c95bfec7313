"""The naive search: mask one more neuron, run everything again, and look."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.critical_models import Case
from tests.masking.reference import linear_of
from vlm_lens.masking import word_overlap
from vlm_lens.passes.answers import media_tokens
from vlm_lens.passes.batch import Batch

RATIO, SIMILARITY, AGREEMENT = 10.0, 0.3, 0.95
"""The thresholds of collapse and of degradation: the defaults of `find_critical`."""


@dataclass(frozen=True)
class Found:
    """The model without its first k neurons, as the naive loop sees it."""

    k: int
    ratio: float
    agreement: float
    similarity: float | None

    @property
    def collapsed(self) -> bool:
        return self.similarity is not None and self.similarity <= SIMILARITY

    @property
    def degraded(self) -> bool:
        return self.agreement <= AGREEMENT


class Naive:
    """Hugging Face's model with PyTorch's own hooks: nothing of it knows what has changed.

    It is no slower than need be: a hook writes zeros in place, stays where it is from one k to the
    next, logits are made of the answers' positions only, and answers are generated only where the
    perplexity asks for it.
    """

    def __init__(self, case: Case) -> None:
        self._case, self._hf = case, case.model.hf_model
        self._ranked = [(linear_of(self._hf, n.name), n.index) for n in case.ranking]
        self._tokenizer = case.model.tokenizer
        self._never = media_tokens(case.model)
        self._channels: dict[nn.Linear, list[int]] = {}
        self._index: dict[nn.Module, Tensor] = {}
        self._k = 0
        self._clean_nll = self._losses()[0]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """While this lasts, channels that `measure` is told of are masked."""
        linears = {linear for linear, _ in self._ranked}
        handles = [linear.register_forward_hook(self._mask) for linear in linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _mask(self, linear: nn.Module, _args: Any, output: Tensor) -> None:
        if linear in self._index:
            output.index_fill_(-1, self._index[linear], 0.0)

    def measure(self, k: int) -> Found:
        """Masks the first k of the ranking and runs everything again."""
        self._set(k)
        nll, agreement = self._losses()
        # As `find_critical` counts: what is not finite has collapsed.
        ratio = math.exp(min(nll - self._clean_nll, 700.0)) if math.isfinite(nll) else math.inf
        return Found(k, ratio, agreement, self._similarity() if ratio >= RATIO else None)

    def _set(self, k: int) -> None:
        if k < self._k:
            self._channels, self._index, self._k = {}, {}, 0
        changed = set()
        for linear, channel in self._ranked[self._k : k]:
            self._channels.setdefault(linear, []).append(channel)
            changed.add(linear)
        self._index |= {linear: torch.tensor(self._channels[linear]) for linear in changed}
        self._k = k

    @torch.no_grad()
    def _losses(self) -> tuple[float, float]:
        """Mean cross entropy of all answers' tokens, and the share of answers that stay."""
        total, n_tokens, n_kept = 0.0, 0, 0
        for batch in self._case.batches:
            columns = batch.scored.any(0).nonzero()[:, 0]
            logits = self._hf(**batch.arguments, use_cache=False, logits_to_keep=columns).logits
            scored, targets = batch.scored[:, columns], batch.targets[:, columns]
            nll = F.cross_entropy(logits[scored].float(), targets[scored], reduction="none")
            logits[..., self._never] = -torch.inf
            same = (logits.argmax(-1) == targets) | ~scored
            total += float(nll.double().sum())
            n_tokens, n_kept = n_tokens + len(nll), n_kept + int(same.all(1).sum())
        return total / n_tokens, n_kept / self._case.n_samples

    @torch.no_grad()
    def _similarity(self) -> float:
        """How alike the answers of the masked model and of the clean one are."""
        alike = [value for batch in self._case.batches for value in self._alike(batch)]
        return sum(alike) / len(alike)

    def _alike(self, batch: Batch) -> Sequence[float]:
        tokens = self._hf.generate(
            **batch.prompts,
            max_new_tokens=self._case.max_new_tokens,
            do_sample=False,
            suppress_tokens=self._never or None,
        )
        answers = self._tokenizer.batch_decode(
            tokens[:, batch.prompts.shape[1] :], skip_special_tokens=True
        )
        return word_overlap(answers, batch.answers)

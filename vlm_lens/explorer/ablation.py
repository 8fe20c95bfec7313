"""What a model answers without some neurons, beside what it answers with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.explorer.subject import Subject
from vlm_lens.inputs.batch import token_strings
from vlm_lens.neurons import NeuronSet

TOP = 6
"""So many of the likeliest tokens are listed, of the clean and of the ablated model each."""


@dataclass(frozen=True)
class TokenChange:
    """One token at the answer's first position.

    Attributes:
        token: As text.
        clean: Its probability.
        ablated: The same without the neurons.
        logit_difference: By how much its logit rises without them.
    """

    token: str
    clean: float
    ablated: float
    logit_difference: float


@dataclass(frozen=True)
class Ablation:
    """The model with and without some neurons, which are set to 0 at every position.

    Attributes:
        clean: What it answers.
        ablated: What it answers without them.
        tokens: The likeliest first tokens of both answers, by their clean probability.
    """

    clean: str
    ablated: str
    tokens: tuple[TokenChange, ...]


class Ablations:
    """Answers of one prompt without neurons; what is clean is computed once.

    Args:
        subject: The prompt.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._clean: tuple[str, Float[Tensor, " d_vocab"]] | None = None

    def __call__(self, neurons: NeuronSet) -> Ablation:
        """The answers with and without these neurons.

        Raises:
            ValueError: There is no neuron.
        """
        if not len(neurons):
            raise ValueError("expected at least one neuron to ablate, got none")
        if self._clean is None:
            self._clean = self._answered()
        with self._subject.model.hooks(fwd_hooks=neurons.ablate()):
            ablated, without = self._answered()
        clean, logits = self._clean
        return Ablation(clean, ablated, self._changes(logits, without))

    @torch.no_grad()
    def _answered(self) -> tuple[str, Any]:
        """What the model answers now, and the logits of the first token."""
        subject = self._subject
        logits = subject.answer_logits(subject.model(subject.arguments))[0].float().cpu()
        return subject.text_of(subject.generate()), logits

    def _changes(
        self, clean: Float[Tensor, " d_vocab"], ablated: Float[Tensor, " d_vocab"]
    ) -> tuple[TokenChange, ...]:
        before, after = clean.softmax(-1), ablated.softmax(-1)
        k = min(TOP, len(clean))
        chosen = {*before.topk(k).indices.tolist(), *after.topk(k).indices.tolist()}
        ids = sorted(chosen, key=lambda token: -float(before[token]))
        texts = token_strings(self._subject.model.tokenizer, ids)
        return tuple(
            TokenChange(
                text, float(before[i]), float(after[i]), float(ablated[i]) - float(clean[i])
            )
            for i, text in zip(ids, texts, strict=True)
        )

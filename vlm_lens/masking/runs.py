"""A model without the best k neurons of a ranking, measured for many k on the same samples."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.masking.replay import Replay, in_copies, replay_below
from vlm_lens.masking.row_masks import Fill, RowMasks
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.neuron import split_name
from vlm_lens.parts import text_for
from vlm_lens.passes.answers import answer_positions, greedy_tokens, media_tokens, with_answers
from vlm_lens.passes.batch import Batch


@dataclass(frozen=True, eq=False)
class Losses:
    """What a model makes of one answer to each sample.

    Attributes:
        nll: Sum of the negative log likelihoods of an answer's tokens, in nats, float64; infinite
            where the model's output is not finite.
        n_tokens: Number of an answer's tokens.
        is_greedy: Whether greedy generation would give this answer, token by token.
    """

    nll: Float[Tensor, " sample"]
    n_tokens: Int[Tensor, " sample"]
    is_greedy: Bool[Tensor, " sample"]


class MaskedRuns:
    """Runs a model without the best k neurons of a ranking.

    The sets of a ranking are nested, which saves work without changing results: what lies before
    the lowest masked neuron is computed once (`Replay`), and several k run as one batch
    (`RowMasks`).

    Args:
        model: A `HookedVLM`, or TransformerLens' `TransformerBridge` around the same model.
        batches: What it is measured on; see `make_batches`.
        ranking: Neurons, best first.
        fill: What masked neurons are set to; zero by default.
        first_token: Whether each sequence's first token is masked as well, in the language model.
        reuse: Whether to compute only once what no masked neuron can change.
        rows: At most so many rows (samples times k) run as one batch.
        max_new_tokens: At most so many tokens of an answer.
    """

    def __init__(
        self,
        model: Any,
        batches: Sequence[Batch],
        ranking: NeuronSet,
        *,
        fill: Fill | None = None,
        first_token: bool = True,
        reuse: bool = True,
        rows: int = 64,
        max_new_tokens: int = 20,
    ) -> None:
        self.model, self.batches, self.ranking = model, batches, ranking
        self._masks = RowMasks(ranking, fill=fill)
        self._first_token, self._reuse, self._rows = first_token, reuse, rows
        self._max_new_tokens, self._never = max_new_tokens, media_tokens(model)
        self._is_hooked_vlm = isinstance(model, HookedVLM)
        self._keeps_logits = (
            self._is_hooked_vlm
            and "logits_to_keep" in inspect.signature(model.hf_model.forward).parameters
        )
        self._replays: dict[tuple[int, bool], Replay] = {}

    # Answers given, teacher-forced --------------------------------------------------------------

    @torch.no_grad()
    def losses(self, ks: Sequence[int]) -> list[Losses]:
        """For each k, what the model without the best k makes of the batches' answers."""
        parts: dict[int, list[Losses]] = {k: [] for k in ks}
        for i, batch in enumerate(self.batches):
            at_once = max(1, self._rows // len(batch))
            for some in (ks[j : j + at_once] for j in range(0, len(ks), at_once)):
                found = self._losses_of(i, some, batch.arguments, batch.targets, batch.scored)
                for k, losses in zip(some, found, strict=True):
                    parts[k].append(losses)
        return [_joined(parts[k]) for k in ks]

    @torch.no_grad()
    def losses_of(self, k: int, generated: Sequence[Int[Tensor, "_batch _pos"]]) -> Losses:
        """What the model without the best k makes of other answers, such as its own.

        Args:
            k: How many neurons are masked.
            generated: For each batch, what `generate` returned.
        """
        parts = []
        for i, (batch, tokens) in enumerate(zip(self.batches, generated, strict=True)):
            n_prompt = text_for(self.model, "answers").n_before(batch.prompts)
            scored = answer_positions(self.model, tokens, n_prompt)
            arguments = with_answers(self.model, batch.prompts, tokens)
            parts += self._losses_of(
                i, [k], arguments, tokens[:, 1:], scored[:, 1:], replaying=False
            )
        return _joined(parts)

    def _losses_of(
        self,
        i: int,
        ks: Sequence[int],
        arguments: dict[str, Any],
        targets: Int[Tensor, "batch predicted"],
        scored: Bool[Tensor, "batch predicted"],
        *,
        replaying: bool = True,
    ) -> list[Losses]:
        columns = scored.any(0).nonzero()[:, 0]
        with self._masked(i, ks, arguments, replaying=replaying):
            logits = self._logits(in_copies(arguments, len(ks)), columns)
        sample, column = scored[:, columns].nonzero(as_tuple=True)
        answer = targets[:, columns][sample, column]
        logits = logits.unflatten(0, (len(ks), -1))[:, sample, column].float()
        nll = F.cross_entropy(logits.flatten(0, 1), answer.repeat(len(ks)), reduction="none").view(
            len(ks), -1
        )
        nll = nll.double().nan_to_num(nan=torch.inf, posinf=torch.inf).cpu()
        broken = ~logits.isfinite().all(-1)
        logits[..., self._never] = -torch.inf
        wrong = (logits.argmax(-1) != answer) | broken
        sample, zeros = sample.cpu(), torch.zeros(len(scored), dtype=torch.float64)
        return [
            Losses(
                nll=zeros.index_add(0, sample, nll[copy]),
                n_tokens=scored.sum(1).cpu(),
                is_greedy=zeros.index_add(0, sample, wrong[copy].double().cpu()) == 0,
            )
            for copy in range(len(ks))
        ]

    def _logits(
        self, arguments: dict[str, Any], columns: Int[Tensor, " column"]
    ) -> Float[Tensor, "rows column d_vocab"]:
        """The logits at some positions; the language-model head is spared the others."""
        if not self._is_hooked_vlm:
            rest = {name: value for name, value in arguments.items() if name != "input_ids"}
            return self.model(arguments["input_ids"], **rest)[:, columns]
        if self._keeps_logits:
            return self.model(arguments, use_cache=False, logits_to_keep=columns)
        return self.model(arguments, use_cache=False)[:, columns]

    @property
    def generates(self) -> bool:
        """Whether masked answers can be generated."""
        return self._is_hooked_vlm

    # Answers of its own -------------------------------------------------------------------------

    @torch.no_grad()
    def generated(self, k: int) -> list[Int[Tensor, "_batch _pos"]]:
        """What the model without the best k generates greedily: tokens for each batch."""
        if not self.generates:
            raise TypeError(
                "TransformerBridge generates without its cache and without padding, so masked "
                "answers are not generated with it: give criteria that need none (perplexity and "
                "agreement), or use a HookedVLM of the same model."
            )
        tokens = []
        for i, batch in enumerate(self.batches):
            with self._masked(i, [k], batch.prompts, generating=True):
                tokens.append(
                    greedy_tokens(self.model, batch.prompts, max_new_tokens=self._max_new_tokens)
                )
        return tokens

    def texts(self, generated: Sequence[Int[Tensor, "_batch _pos"]]) -> list[str]:
        """Generated tokens as text, without the prompt and special tokens."""
        return [
            text.strip()
            for batch, tokens in zip(self.batches, generated, strict=True)
            for text in self.model.tokenizer.batch_decode(
                tokens[:, text_for(self.model, "answers").n_before(batch.prompts) :],
                skip_special_tokens=True,
            )
        ]

    # Masking ------------------------------------------------------------------------------------

    @contextmanager
    def _masked(
        self,
        i: int,
        ks: Sequence[int],
        arguments: Mapping[str, Any],
        *,
        generating: bool = False,
        replaying: bool = True,
    ) -> Iterator[None]:
        """Masks the best k of each copy of a batch, and computes the rest only once."""
        spare = None if self._first_token else partial(_first_positions, arguments)
        hooks = self._masks.hooks(ks, spare=spare)
        with warnings.catch_warnings(), self.model.hooks(fwd_hooks=hooks):
            # Samples without an image do not reach what encodes images.
            warnings.simplefilter("ignore", HookNeverFiredWarning)
            if not (self._reuse and replaying and self._is_hooked_vlm and hooks):
                yield
                return
            with self._replay(i, max(ks), generating).running(copies=len(ks)):
                yield

    def _replay(self, i: int, k: int, generating: bool) -> Replay:
        """The replay of a batch; a new one where neurons of earlier layers join in."""
        fresh = replay_below(self.model, self._masks.names(k), generating=generating)
        known = self._replays.get((i, generating))
        # What was kept for more neurons is still right for fewer.
        if known is None or not set(known.kept) <= set(fresh.kept) | set(fresh.skipped):
            self._replays[i, generating] = known = fresh
        return known


def _first_positions(arguments: Mapping[str, Any], name: str) -> Bool[Tensor, "batch pos"] | None:
    """The first position of each sequence that is not padding, at the language model's points."""
    if split_name(name)[0] not in ("language_model", "encoder", "decoder"):
        return None
    prefix = "decoder_" if name.startswith("decoder.") else ""
    mask = arguments.get(f"{prefix}attention_mask")
    real = torch.ones_like(arguments[f"{prefix}input_ids"]) if mask is None else mask
    return (real.cumsum(1) == 1) & (real == 1)


def _joined(parts: Sequence[Losses]) -> Losses:
    return Losses(
        nll=torch.cat([part.nll for part in parts]),
        n_tokens=torch.cat([part.n_tokens for part in parts]),
        is_greedy=torch.cat([part.is_greedy for part in parts]),
    )


@dataclass(eq=False)
class MaskedRun:
    """One k of `MaskedRuns`; answers are generated when a metric asks for them.

    Attributes:
        runs: The model and the samples.
        k: How many neurons are masked.
        losses: What it makes of the batches' answers.
        clean: The same with nothing masked; None if this is that.
    """

    runs: MaskedRuns
    k: int
    losses: Losses
    clean: MaskedRun | None = None

    @cached_property
    def generated(self) -> list[Int[Tensor, "_batch _pos"]]:
        """The tokens that the masked model generates, batch by batch."""
        return self.runs.generated(self.k)

    @cached_property
    def answers(self) -> list[str]:
        """The masked model's greedy answers."""
        if self.clean is None:
            return [answer for batch in self.runs.batches for answer in batch.answers]
        return self.runs.texts(self.generated)

    @property
    def has_answers(self) -> bool:
        """Whether answers have been generated."""
        return self.clean is None or "generated" in vars(self)

    @property
    def reference(self) -> MaskedRun:
        """The run with nothing masked."""
        return self if self.clean is None else self.clean

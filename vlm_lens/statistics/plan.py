"""What happens to a batch of samples: one forward, whose hooks keep statistics only."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.data import Sample
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.inputs.samples import why_refused
from vlm_lens.model import HookedVLM
from vlm_lens.statistics.attention import received
from vlm_lens.statistics.neuron_statistics import NeuronStatistics
from vlm_lens.statistics.parts import Parts
from vlm_lens.statistics.prepared import Answers, Prepared, prepare
from vlm_lens.statistics.reduce import moments_of, peaks_of
from vlm_lens.statistics.site_statistics import SiteStatistics
from vlm_lens.statistics.token_types import TokenType
from vlm_lens.statistics.top_samples import TopSamples


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Takes samples into statistics.

    Attributes:
        model: What runs.
        names: The hook points that are reduced.
        types: The token types.
        ranked: The type of the tokens that rank the samples.
        patterns: The attention pattern that each hook point is weighed with; empty for none.
        top_k: How many samples of each neuron are kept.
        active_above: From which activation on a neuron is active.
        answers: What is behind the prompts.
    """

    model: HookedVLM
    names: Sequence[str]
    types: tuple[TokenType, ...]
    ranked: TokenType
    patterns: Mapping[str, str]
    top_k: int
    active_above: int | float
    answers: Answers

    def __call__(
        self, known: NeuronStatistics, numbers: list[int], samples: list[Sample]
    ) -> NeuronStatistics:
        """What is known, and some more samples.

        Raises:
            ValueError: These are the first samples, and none of them can be used.
        """
        found = self._plus(known, numbers, samples)
        if not known.n_samples and not known.left_out and not found.n_samples:
            raise ValueError(
                f"none of the first {len(samples)} samples can be used; sample {numbers[0]}: "
                f"{found.left_out[numbers[0]]}"
            )
        return found

    def _plus(
        self, known: NeuronStatistics, numbers: list[int], samples: list[Sample]
    ) -> NeuronStatistics:
        try:
            prepared = prepare(self.model, samples, numbers, self.answers)
        except (OSError, ValueError) as error:
            reason = why_refused(error)
        else:
            found = self.reduced(prepared)
            wrong = [name for name, site in found.items() if not site.is_finite]
            if not wrong:
                return known.plus(found, n_samples=len(samples))
            reason = f"{wrong[0]} is infinite or NaN"
        if len(samples) == 1:
            return known.without(numbers[0], reason)
        for number, sample in zip(numbers, samples, strict=True):  # the others count
            known = self._plus(known, [number], [sample])
        return known

    def reduced(self, prepared: Prepared) -> dict[str, SiteStatistics]:
        """The statistics of a batch, by hook name; hook points not reached are missing."""
        parts = Parts(prepared)
        weights: dict[str, Tensor] = {}
        found: dict[str, SiteStatistics] = {}

        def weigh(pattern: Tensor, hook: HookPoint) -> None:
            name, (n_rows, _, n_queries, _) = str(hook.name), pattern.shape
            real = parts.real_rows(name, n_rows, n_queries).to(pattern.device)
            weights[name] = received(pattern, real).flatten()

        def reduce(tensor: Tensor, hook: HookPoint) -> None:
            name, activations = str(hook.name), tensor.detach().flatten(0, 1)
            where = (name, tensor.shape, tensor.device)
            its_weights = weights[self.patterns[name]] if self.patterns else None
            moments = {
                part.types: moments_of(
                    activations, part.rows, active_above=self.active_above, weights=its_weights
                )
                for part in parts.of(self.types, *where)
            }
            top = TopSamples(self.top_k)
            for part in parts.of((self.ranked,), *where) if self.top_k else []:
                peaks = peaks_of(activations, part)
                numbers = [prepared.numbers[i] for i in peaks.samples]
                top = top.plus(peaks.values, numbers, peaks.positions)
            if moments:
                found[name] = SiteStatistics(moments, top)

        hooks: list[Any] = [(list(self.names), reduce)]
        if self.patterns:
            hooks = [(list(dict.fromkeys(self.patterns.values())), weigh), *hooks]
        with hooked(self.model, hooks):
            forward(self.model, prepared)
        return {name: found[name] for name in self.names if name in found}


@contextmanager
def hooked(model: HookedVLM, hooks: Sequence[tuple[Any, Callable[..., None]]]) -> Iterator[None]:
    """Hooks for the length of a block; a batch without images is no reason for a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HookNeverFiredWarning)
        with model.hooks(hooks):
            yield


@torch.no_grad()
def forward(model: HookedVLM, prepared: Prepared) -> None:
    """Runs the model on a batch; of the logits, which nobody reads, as few as it can."""
    options: dict[str, Any] = {} if model.text is None else {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.hf_model.forward).parameters:
        options["logits_to_keep"] = 1
    model(prepared.batch.arguments, return_type=None, **options)

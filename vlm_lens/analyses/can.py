"""CAN: critical neurons of vision-language models, by gradient and activation.

Lu, Tang and Cavallaro 2025, "Minimal neuron ablation triggers catastrophic collapse in the language
core of Large Vision-Language Models" (arXiv 2512.00918): the importance of a neuron is

    I = mean over samples of |dL/da| ** alpha * |a|

of its activation ``a`` and the loss ``L``, with alpha from 0 (activations only) to 1 (the first
order of what zeroing it does to the loss). The paper was read in summaries; what they leave open
is a parameter here, and its default is ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_lens.analyses import collapse
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.analyses.importance import Importance, batch_sums
from vlm_lens.analyses.progress import Progress, finish
from vlm_lens.analyses.scores import NeuronScores
from vlm_lens.analyses.token_pool import Tokens
from vlm_lens.data import Sample
from vlm_lens.data.digest import digest_of_samples
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.masking.examples import Target, check_samples, make_batches
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.sites import Which
from vlm_lens.neurons.sites import sites as hook_points
from vlm_lens.results import provenance
from vlm_lens.results.provenance import digest_of_weights


class NotFiniteWarning(UserWarning):
    """Activations or gradients of some samples are infinite or NaN."""


def score(
    model: HookedVLM,
    samples: Sequence[Sample],
    *,
    sites: Which | NamesFilter = "output",
    alpha: int | float = 0.5,
    activation_power: int | float = 1.0,
    tokens: Tokens = "max",
    target: Target = "own",
    batch_size: int = 16,
    max_new_tokens: int = 20,
    first_token: bool = True,
    checkpoint: Path | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> NeuronScores:
    """Scores every neuron by how much the model's answers depend on it.

    All components and hook points are scored in one forward and one backward a batch. A sample
    without an image counts as 0 for the neurons of the encoder and the projector.

    Args:
        model: The model; its parameters are left as they are, and get no gradients.
        samples: What it is asked.
        sites: Which hook points; see `vlm_lens.neurons.sites.sites`.
        alpha: Exponent of the gradient, from 0 to 1. The paper's value is not known; 0.5, in the
            middle, is ours. With 0 there is no backward. The closer to 1, the lower a massive
            activation ranks: the norm behind it divides its size away, and so its gradient.
        activation_power: Exponent of the activation, from 0 to 1: with 0 and ``alpha=1`` the
            baseline that knows gradients only.
        tokens: How the positions of a sample become one number: "max", "mean", "sum" or "last" (the
            one that the answer's first token is predicted from). Ours: a neuron is critical if one
            position cannot do without it, and the mean over hundreds of positions hides that.
        target: The loss is the mean cross entropy of the model's own greedy answer ("own"), which
            needs no annotation, of the sample's ("answer"), or of the prompt itself ("text").
        batch_size: How many samples run at once; scores do not depend on it.
        max_new_tokens: At most so many tokens of an answer.
        first_token: Whether the first token of each of the language model's sequences counts.
            False is a control: attention sinks and massive activations sit there.
        checkpoint: A folder for what is done so far, every few batches and when interrupted. The
            same call goes on from there, to the same scores. None writes nothing.
        on_batch: Called after each batch with the number of batches done and of all.

    Returns:
        The scores, float32. Hook points that no sample reached have none. A sample of which an
        activation or gradient is infinite or NaN does not count: ``parameters["left_out"]`` lists
        such samples, and ``parameters["not_finite"]`` in how many of them which hook points were
        not finite. If there are no others, scores are NaN.

    Raises:
        ValueError: An argument is out of its range, an answer is missing, or the checkpoint belongs
            to another model or to other arguments.
        HookNameError: A site matches nothing.

    Warns:
        HookNeverFiredWarning: A hook point was reached by no sample.
        NotFiniteWarning: Samples were left out.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> scores = score(model, load_samples("shapes-llava", n=4))
        >>> len(scores.top(5)), sorted(scores.filter(component="projector"))
        (5, ['projector.hook_out', 'projector.mlp.hook_pre'])
    """
    importance = Importance(
        alpha=alpha, activation_power=activation_power, tokens=tokens, first_token=first_token
    )
    if tokens == "last" and target == "text":
        raise ValueError("tokens='last' needs an answer: use another target than 'text'")
    answers: dict[str, Any] = {"target": target, "max_new_tokens": max_new_tokens}
    check_samples(samples, batch_size=batch_size, **answers)
    names = hook_points(model, sites)
    batches = [list(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]
    parameters = {**asdict(importance), **answers, "batch_size": batch_size, "sites": names}
    belongs_to = parameters
    if checkpoint is not None:
        identity = {"model": digest_of_weights(model.hf_model), "n": len(samples)}
        belongs_to = {**parameters, **identity, "samples": digest_of_samples(samples)}
    progress = finish(
        _Step(model, names, importance, batches, answers),
        n_batches=len(batches),
        checkpoint=checkpoint,
        belongs_to=belongs_to,
        on_batch=on_batch,
    )
    return _scores(progress, len(samples), parameters | {"provenance": provenance(model)})


def find_critical(
    model: HookedVLM,
    samples: Sequence[Sample],
    scores: NeuronScores | NeuronSet,
    **options: Any,
) -> CriticalNeurons:
    """Masks the best-ranked neurons, more and more of them, until the model collapses (CAN).

    The ranking is global over all components and sites and does not change; the sets are nested;
    ``k`` is the smallest that makes the model collapse: perplexity of the clean answers is up
    tenfold and the answers are unlike the clean ones. The paper leaves both thresholds, the second
    metric and the steps open: these are ours, and replaceable.

    Args:
        model: The model.
        samples: What it is measured on, usually what was scored.
        scores: Of `score`, or any other ranking.
        **options: See `vlm_lens.analyses.collapse.find_critical`.

    Returns:
        The critical neurons, with every measurement that was made.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=4)
        >>> scores = score(model, samples, sites="blocks.*.hook_mlp_out")
        >>> found = find_critical(model, samples, scores, max_k=16)
        >>> found.method, len(found.ranking)
        ('CAN', 16)
    """
    return collapse.find_critical(model, samples, scores, **options)


@dataclass(frozen=True, eq=False)
class _Step:
    """Takes the next batch."""

    model: HookedVLM
    names: list[str]
    importance: Importance
    batches: list[list[Sample]]
    answers: dict[str, Any]

    def __call__(self, progress: Progress) -> Progress:
        samples = self.batches[progress.n_batches]
        first = progress.n_batches * len(self.batches[0])
        measured = self._measured(samples, first)
        return progress.plus(
            measured.sums, left_out=measured.left_out, not_finite=measured.not_finite
        )

    def _measured(self, samples: list[Sample], first: int) -> Progress:
        """The sums of these samples; where they are not finite, of each that has finite ones."""
        [batch] = make_batches(self.model, samples, batch_size=len(samples), **self.answers)
        found = batch_sums(self.model, batch, self.names, self.importance)
        sums = {name: total.cpu() for name, total in found.items()}
        bad = [name for name, total in sums.items() if not total.isfinite().all()]
        if not bad:
            return Progress().plus(sums)
        if len(samples) == 1:
            nothing = {name: torch.zeros_like(total) for name, total in sums.items()}
            return Progress().plus(nothing, left_out=[first], not_finite=dict.fromkeys(bad, 1))
        together = Progress()
        for i, sample in enumerate(samples):
            one = self._measured([sample], first + i)
            together = together.plus(one.sums, left_out=one.left_out, not_finite=one.not_finite)
        return together


def _scores(progress: Progress, n_samples: int, parameters: dict[str, Any]) -> NeuronScores:
    """Means over the samples that count; warns of what is missing."""
    names, n_counted = parameters["sites"], n_samples - len(progress.left_out)
    if silent := [name for name in names if name not in progress.sums]:
        warnings.warn(
            f"{len(silent)} hook points have no scores, because no sample reached them: "
            f"{', '.join(silent[:3])}{' ...' * (len(silent) > 3)}. Encoders and projectors need "
            "samples with images.",
            HookNeverFiredWarning,
            stacklevel=3,
        )
    if progress.left_out:
        warnings.warn(
            f"{len(progress.left_out)} of {n_samples} samples do not count: activations or "
            f"gradients are infinite or NaN at {len(progress.not_finite)} hook points, such as "
            f"{next(iter(progress.not_finite))!r}. If the model is in float16, score it in float32 "
            "or bfloat16.",
            NotFiniteWarning,
            stacklevel=3,
        )
    values = {
        name: (progress.sums[name] / n_counted).float() for name in names if name in progress.sums
    }
    found = {"left_out": list(progress.left_out), "not_finite": progress.not_finite}
    return NeuronScores(values, "CAN", {"n_samples": n_samples, **parameters, **found})

"""CAN: critical neurons of vision-language models, by gradient and activation.

Lu, Tang and Cavallaro 2025, "Minimal neuron ablation triggers catastrophic collapse in the language
core of Large Vision-Language Models" (arXiv 2512.00918): the importance of a neuron is

    I = mean over samples of |dL/da| ** alpha * |a|

of its activation ``a`` and the loss ``L``, with alpha from 0 (activations only) to 1 (the first
order of what zeroing it does to the loss). The paper was read in summaries; what they leave open
is a parameter here, and its default is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlm_lens.analyses import collapse
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.analyses.importance import Importance
from vlm_lens.analyses.token_pool import Tokens
from vlm_lens.data import Sample
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.sites import Which
from vlm_lens.neurons.sites import sites as hook_points
from vlm_lens.passes import Run, one_pass
from vlm_lens.passes.answers import Answers
from vlm_lens.passes.batch import Target, check_samples
from vlm_lens.passes.data import ONE
from vlm_lens.passes.run import OnBatch
from vlm_lens.results import provenance
from vlm_lens.results.scores import Scores


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
    on_batch: OnBatch | None = None,
) -> Scores:
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
        The scores, float32. Hook points that no sample reached have none. A sample does not count
        that cannot be prepared, or of which an activation or gradient is infinite or NaN:
        ``parameters["left_out"]`` lists such samples, and ``parameters["not_finite"]`` in how many
        of them which hook points were not finite.

    Raises:
        ValueError: An argument is out of its range, an answer is missing, no sample counts, or the
            checkpoint belongs to another model or to other arguments.
        HookNameError: A site matches nothing.

    Warns:
        HookNeverFiredWarning: A hook point was reached by no sample.
        SamplesLeftOutWarning: Samples were left out.

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
    parameters = {**asdict(importance), **answers, "batch_size": batch_size, "sites": names}
    passed = one_pass(
        model,
        samples,
        {"importance": importance},
        sites=names,
        answers=Answers("own", max_new_tokens),
        target=target,
        about=parameters,
        run=Run(batch_size=batch_size, folder=checkpoint, kind="progress", on_batch=on_batch),
    )
    n_counted = passed.n_samples[ONE]
    return Scores(
        {
            name: (state["sum"] / n_counted).float()
            for name, state in passed.of("importance", ONE).items()
        },
        "CAN",
        {
            "n_samples": len(samples),
            **parameters,
            "provenance": provenance(model),
            "left_out": list(passed.left_out.get(ONE, {})),
            "not_finite": passed.not_finite,
        },
    )


def find_critical(
    model: HookedVLM,
    samples: Sequence[Sample],
    scores: Scores | NeuronSet,
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

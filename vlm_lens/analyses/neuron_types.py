"""Types of neurons: visual, text, multi-modal or unknown.

Xu, Lan, Chen and Lu 2025, "Deciphering Functions of Neurons in Vision-Language Models"
(arXiv 2502.18485). A neuron is an output of the MLP's activation function in the language model.
Its type is read off the samples in which it is most active:

- Activations are put on a scale from 0 (0 and below) to 10 (the neuron's largest one over all
  samples).
- A sample is visual-activated if at least n_v visual tokens are above T_v, and text-activated if
  at least n_t text tokens are above T_t. Visual tokens are those of the image, text tokens those
  of the model's own description of it (teacher-forced); tokens of the prompt do not count.
- A sample that is only the first is visual, only the second is text, both is multi-modal, neither
  is unknown. The shares of the four among the top samples are p_v, p_t, p_m and p_u; the largest
  one names the neuron, and is "high confidence" above 0.8.

The classification was read in a careful reproduction; what that leaves open is a parameter here.
Labels depend on the thresholds. So a grid of them is tried at once, and each label has a p-value
under the null hypothesis that the kind of token does not matter (`neuron_types_null`; ours).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlm_lens.analyses.neuron_types_counts import Comparison, Thresholds
from vlm_lens.analyses.neuron_types_labels import check_shares, of_site, sensitivity
from vlm_lens.analyses.neuron_types_passes import Passes, Setting, n_text_tokens
from vlm_lens.analyses.neuron_types_result import NeuronTypes
from vlm_lens.data import Sample
from vlm_lens.data.sample import check_are_samples
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.sites import Which
from vlm_lens.passes import Run
from vlm_lens.passes.answers import Answers, AnswerSource
from vlm_lens.passes.run import OnBatch
from vlm_lens.studies import study

GRID: Mapping[str, Sequence[int | float]] = {
    "T_v": (1.0, 2.0, 3.0),
    "n_v": (2, 4, 8),
    "T_t": (2.0, 3.0, 4.0),
    "n_t": (1, 2, 4),
}
"""Thresholds around the paper's."""

_TRIED = 8
"""With so many samples it is tried whether they have visual and text tokens at all."""


def classify(
    model: HookedVLM,
    samples: Sequence[Sample],
    *,
    sites: Which | NamesFilter = "act",
    component: str | None = "language_model",
    top_samples: int = 50,
    T_v: int | float = 2.0,
    n_v: int = 4,
    T_t: int | float = 3.0,
    n_t: int = 2,
    comparison: Comparison = ">=",
    visual_tokens: str = "image",
    text_tokens: str = "answer text",
    maximum_over: str | None = None,
    grid: Mapping[str, Sequence[int | float]] = GRID,
    high_confidence: int | float = 0.8,
    alpha: int | float = 0.05,
    answers: AnswerSource | None = "own",
    max_new_tokens: int = 64,
    batch_size: int = 16,
    checkpoint: Path | None = None,
    checkpoint_every: int = 32,
    on_batch: OnBatch | None = None,
) -> NeuronTypes:
    """Types all neurons of all layers, in two passes over the samples.

    The first pass finds each neuron's maximum and top samples, the second counts in these.

    Args:
        model: The model; nothing about it is changed.
        samples: Images and prompts that ask to describe them.
        sites: Which hook points; the paper's are "act".
        component: Only this one; None for all. There must be visual and text tokens at each site.
        top_samples: How many samples decide on a neuron. The paper's is 50.
        T_v: A visual token is activated above this, on the scale from 0 to 10.
        n_v: So many of them make a sample visual-activated.
        T_t: A text token is activated above this.
        n_t: So many of them make a sample text-activated.
        comparison: Whether n tokens are enough (">=") or more are needed (">"); sources differ.
        visual_tokens: Which tokens are visual; see `vlm_lens.statistics.TokenType`.
        text_tokens: Which are text. With "text" those of the prompt count too, and with
            "answer" the token that ends the answer.
        maximum_over: Over which tokens a neuron's maximum and its top samples are found; by default
            the visual and the text tokens. The paper may mean all tokens ("any"): there, neurons
            that are huge at the first token have no type.
        grid: Other values of T_v, n_v, T_t and n_t, all combinations of which are tried.
        high_confidence: A share above this is one of high confidence.
        alpha: The rate of false discoveries up to which a label is significant.
        answers: What is behind the prompts: the model's own greedy answers, those "given" by the
            samples, or nothing.
        max_new_tokens: At most so many tokens of an own answer.
        batch_size: How many samples run at once.
        checkpoint: A folder for what is done so far; the same call goes on from there, to the
            identical result.
        checkpoint_every: After so many batches it is written.
        on_batch: Called after each batch with the number of batches done and of all, of both
            passes.

    Returns:
        The types, with shares, p-values and the labels at other thresholds.

    Raises:
        TypeError: Something is no sample.
        ValueError: An argument is out of its range, visual and text tokens overlap or one of them
            never occurs at a site, or the checkpoint belongs to something else.
        HookNameError: A site matches nothing.

    Warns:
        SamplesLeftOutWarning: Samples do not count.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", task="caption", n=8)
        >>> found = classify(model, samples, top_samples=5)
        >>> found.table()["label"].tolist(), int(found.table()["neurons"].sum())
        (['visual', 'text', 'multi-modal', 'unknown'], 2304)
        >>> found.neurons("visual", high_confidence=True)[0].component
        'language_model'
    """
    check_are_samples(samples)
    setting = Setting(
        thresholds=Thresholds(T_v, n_v, T_t, n_t),
        comparison=comparison,
        visual_tokens=visual_tokens,
        text_tokens=text_tokens,
        maximum_over=maximum_over,
        grid=grid,
        top_samples=top_samples,
    )
    check_shares(high_confidence=high_confidence, alpha=alpha)
    n_batches = -(-len(samples) // batch_size) if batch_size > 0 else 0
    passes = Passes(
        model=model,
        samples=samples,
        setting=setting,
        answers=Answers(answers, max_new_tokens, {}),
        batch_size=batch_size,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
    )
    statistics = passes.first(
        sites=sites, component=component, on_batch=_from(0, n_batches, on_batch)
    )
    counts = passes.second(statistics, on_batch=_from(n_batches, 0, on_batch))
    return NeuronTypes(
        sites={name: of_site(site, statistics.top[name]) for name, site in counts.items()},
        tried=sensitivity(counts, setting.all_thresholds),
        parameters={
            **statistics.parameters,
            **setting.fields(),
            "n_samples": statistics.n_samples,
            "n_text_tokens": n_text_tokens(statistics),
            "left_out": {str(number): why for number, why in statistics.left_out.items()},
            "high_confidence": high_confidence,
            "alpha": alpha,
        },
    )


def _from(before: int, after: int, on_batch: OnBatch | None) -> OnBatch | None:
    """A callback for one of two passes, with so many batches before and after it."""
    if on_batch is None:
        return None
    return lambda n, total: on_batch(before + n, None if total is None else before + total + after)


def _check(samples: Sequence[Sample], **options: Any) -> None:
    """Refuses options that are out of range, and answers that are not there.

    Raises:
        ValueError: There are such.
    """
    check_shares(high_confidence=options["high_confidence"], alpha=options["alpha"])
    thresholds = Thresholds(*(options[name] for name in GRID))
    Setting(thresholds=thresholds, top_samples=options["top_samples"])
    if options["answers"] == "given" and not any((s.answer or "").strip() for s in samples):
        raise ValueError(
            f"--answers given needs answers, but none of the {len(samples)} samples has one"
        )


@study(
    "types",
    title="Types of neurons",
    paper="arXiv 2502.18485",
    task="caption",
    n=500,
    needs=("images",),
    check=_check,
)
def types(
    model: HookedVLM,
    samples: Sequence[Sample],
    *,
    answers: Literal["own", "given"] = "own",
    max_new_tokens: int = 64,
    sites: str = "act",
    component: str = "language_model",
    top_samples: int = 50,
    T_v: float = 2.0,
    n_v: int = 4,
    T_t: float = 3.0,
    n_t: int = 2,
    high_confidence: float = 0.8,
    alpha: float = 0.05,
    run: Run = Run(),  # noqa: B008
) -> NeuronTypes:
    """Which neurons are visual, text, multi-modal or unknown.

    That is read off the samples in which they are most active.

    Args:
        model: The model.
        samples: Images and prompts that ask to describe them.
        answers: Behind the prompts: the model's own, or those given.
        max_new_tokens: The longest answer.
        sites: Which neurons: act, post, output or a glob of hook names.
        component: Only its neurons.
        top_samples: Samples that decide on a neuron, those where it is most active.
        T_v: A visual token is activated above this, from 0 to 10.
        n_v: So many of them make a sample visual.
        T_t: A text token is activated above this.
        n_t: So many of them make a sample text.
        high_confidence: A share above this is of high confidence.
        alpha: Rate of false discoveries up to which a label is more than chance.
        run: How it is done.
    """
    options = {"T_v": T_v, "n_v": n_v, "T_t": T_t, "n_t": n_t, "max_new_tokens": max_new_tokens}
    typed = partial(classify, model, sites=sites, component=component, answers=answers)
    with warnings.catch_warnings(action="ignore"):  # what only the model knows is refused at once
        typed(samples[:_TRIED], top_samples=1, grid={}, **options)
    options |= {"high_confidence": high_confidence, "alpha": alpha, "top_samples": top_samples}
    return run.kept("", NeuronTypes, lambda run: typed(samples, **options, **run.keywords))

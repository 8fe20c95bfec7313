"""Explains neurons automatically, and scores explanations by what can be predicted from them.

Exemplars of a neuron (the samples in which it is most active) go to an explainer; what it says goes
to a simulator, which predicts the activations in samples that were held out; the correlation with
the true ones is the score. "Deciphering Functions of Neurons in Vision-Language Models" (arXiv
2502.18485) does so with GPT-4o and a simulator for patches, but publishes neither prompts nor the
formula of the score. Ours are those of Bills et al. (2023, "Language models can explain neurons in
language models"): top and random samples, Pearson's correlation; patches are treated as tokens are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vlm_lens.analyses import simulate
from vlm_lens.analyses.chat import Chat, ChatError, ReplyError
from vlm_lens.analyses.concepts import ConceptExplainer, concepts
from vlm_lens.analyses.exemplars import Exemplar, Exemplars, SampleView
from vlm_lens.analyses.explainers import ChatExplainer, ModelExplainer, by_chat, by_model
from vlm_lens.analyses.explaining.concept import Concept
from vlm_lens.analyses.explaining.explained import ExplainedNeuron
from vlm_lens.analyses.explaining.explanation import Explainer, Explanation, Simulator, Term
from vlm_lens.analyses.explaining.gather import Choice, Gathered, OnBatch, gather
from vlm_lens.analyses.explaining.prompt import Cost
from vlm_lens.analyses.explaining.scoring import (
    other_neurons,
    score,
    shuffled_scores,
    simulated,
)
from vlm_lens.analyses.explanations import Explanations
from vlm_lens.data import Sample
from vlm_lens.data.sample import check_are_samples
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.passes.answers import AnswerSource
from vlm_lens.results import provenance

__all__ = [
    "Chat",
    "ChatError",
    "Concept",
    "Cost",
    "CostWarning",
    "Exemplar",
    "Exemplars",
    "ExplainedNeuron",
    "Explainer",
    "Explanation",
    "Explanations",
    "ReplyError",
    "SampleView",
    "Simulator",
    "Term",
    "by_chat",
    "by_model",
    "concepts",
    "explain",
]


class CostWarning(UserWarning):
    """Requests are about to be sent to an endpoint."""


def explain(
    model: HookedVLM,
    samples: Sequence[Sample],
    neurons: Iterable[Neuron],
    *,
    explainer: Explainer | None = None,
    simulator: Simulator | None = None,
    top: int = 10,
    random: int = 10,
    held_out: int | float = 0.5,
    shuffles: int = 100,
    alpha: int | float = 0.05,
    answers: AnswerSource | None = "own",
    max_new_tokens: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    checkpoint: Path | None = None,
    on_cost: Callable[[Cost], object] | None = None,
    on_batch: OnBatch | None = None,
    on_neuron: Callable[[int, int], object] | None = None,
) -> Explanations:
    """Explains neurons and scores the explanations on samples that were held out.

    Samples are split first; those that show the same images stay together. Each neuron is explained
    from the samples of one half in which it is most active, and random ones of that half, and
    tested on those of the other half. Patches and tokens of prompt and answer count; special
    tokens do not. Activations are scaled: negative ones are 0, the neuron's largest is 10.

    To know what a score means, each neuron is also scored with the explanations of other neurons.
    That an explanation predicts does not mean that what it names was learnt: in a model with random
    weights too, neurons react to single words. Explain such a model beside it, and look at the
    scores of patches and tokens apart.

    Args:
        model: The model; nothing about it is changed.
        samples: The data set; annotations are read by `concepts` only.
        neurons: Which neurons, e.g. a `NeuronSet`.
        explainer: From exemplars to an explanation: `concepts` (default), `by_chat`, `by_model`, or
            a function of one's own.
        simulator: From an explanation and a sample to predictions: `simulate.by_concepts` (default
            for `concepts`), `simulate.by_clip`, `simulate.by_chat`, or a function of one's own.
        top: How many samples in which a neuron is most active it is explained from, and tested on.
        random: How many random ones.
        held_out: The share of the samples that explanations are tested on.
        shuffles: With the explanations of how many other neurons each one is scored; 0 for none.
            Where requests cost money, that is what most of them are for.
        alpha: Of the neurons that are called better than chance, this share may be so by mistake.
        answers: "own": the model's greedy answers are behind the prompts and count as text, as in
            the paper; "given": the samples' answers; None: prompts alone.
        max_new_tokens: At most so many tokens of an own answer.
        batch_size: How many samples run at once.
        seed: Of the split, the random samples and the shuffles.
        checkpoint: A folder for the two passes over all samples, which look for those in which the
            neurons are most active; the same call goes on from there. (Replies of endpoints are in
            the `Chat`'s own cache.)
        on_cost: Is told what requests to endpoints cost, before the first one is sent; may raise to
            stop. By default there is a `CostWarning`.
        on_batch: Called after each batch of the model with the number of batches done and of all.
        on_neuron: Called after each neuron that is explained, and after each one that is scored.

    Returns:
        The explanations with scores. Neurons that are never active, and those about which a model
        did not reply properly, are in ``skipped``, with the reason; ``parameters["unanswered"]``
        says to how much an endpoint had no proper reply, which the same call asks again.

    Raises:
        ValueError: An argument is out of its range, no sample can be used, the explainer and the
            simulator do not fit, a neuron is where positions have no place, or the checkpoint
            belongs to something else.
        HookNameError: A neuron is at no hook point of the model.
        IndexError: A hook point has fewer neurons.
        ChatError: An endpoint cannot be used, or no reply of it. What was asked before is in its
            cache.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> neurons = [Neuron("blocks.1.mlp.hook_act", index) for index in range(4)]
        >>> found = explain(model, load_samples("shapes-llava", n=16), neurons, top=3, random=3)
        >>> len(found), found.shuffled.shape
        (4, (3, 4))
        >>> found.to_dataframe().columns[:6].tolist()
        ['neuron', 'component', 'layer', 'index', 'explanation', 'score']
    """
    chosen = NeuronSet(neurons)
    explainer = concepts() if explainer is None else explainer
    simulator = _simulator(explainer, simulator)
    _check(chosen, samples, shuffles, alpha)
    choice = Choice(
        top=top,
        random=random,
        held_out=held_out,
        seed=seed,
        answers=answers,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    gathered = gather(model, samples, chosen, choice, checkpoint=checkpoint, on_batch=on_batch)
    others = other_neurons(len(gathered.explained), times=shuffles, seed=seed)
    cost = _cost(gathered, explainer, simulator, others)
    if cost is not None:
        (on_cost or _warn)(cost)
    explained, skipped = _explained(gathered, explainer, simulator, on_neuron)
    others = other_neurons(len(explained), times=shuffles, seed=seed)
    shuffled = shuffled_scores(
        [one.held_out for one in explained],
        [one.explanation for one in explained],
        simulator,
        others,
        on_neuron=on_neuron,
    )
    unanswered = 0 if cost is None else len(skipped) + int(np.isnan(shuffled).sum())
    if unanswered and not explained:
        raise ChatError(
            f"No reply could be used, so that no neuron was explained; the first: "
            f"{next(iter(skipped.values()))}."
        )
    parameters = {
        "n_samples": len(samples),
        "unanswered": unanswered,
        "shuffles": len(others),
        **asdict(choice),
        "explainer": _parameters(explainer),
        "simulator": _parameters(simulator),
        "cost": None if cost is None else asdict(cost),
        "provenance": provenance(model),
    }
    skipped = {**gathered.silent, **skipped}
    return Explanations(
        tuple(explained),
        shuffled,
        alpha=alpha,
        skipped=skipped,
        parameters=parameters,
        notes=_notes(gathered, skipped, explained, shuffled, unanswered),
    )


def _simulator(explainer: Explainer, simulator: Simulator | None) -> Simulator:
    """The simulator; by concepts if none is given, which needs an explainer by concepts."""
    if isinstance(explainer, ConceptExplainer):
        return simulate.by_concepts(cover=explainer.cover) if simulator is None else simulator
    in_words = isinstance(explainer, ChatExplainer | ModelExplainer)
    if simulator is None or (in_words and isinstance(simulator, simulate.ConceptSimulator)):
        raise ValueError(
            "an explanation in words needs a simulator that reads words: pass simulator=, such as "
            "simulate.by_clip(clip, processor) or simulate.by_chat(chat)"
        )
    return simulator


def _check(
    neurons: NeuronSet, samples: Sequence[Sample], shuffles: int, alpha: int | float
) -> None:
    check_are_samples(samples)
    if not len(neurons):
        raise ValueError("expected at least one neuron, got none")
    if len(samples) < 2:
        raise ValueError(f"expected at least two samples, to hold one out, got {len(samples)}")
    if shuffles < 0:
        raise ValueError(f"expected shuffles of at least 0, got {shuffles}")
    if not 0 < alpha < 1:
        raise ValueError(f"expected alpha between 0 and 1, got {alpha}")


def _cost(
    gathered: Gathered, explainer: Explainer, simulator: Simulator, others: np.ndarray
) -> Cost | None:
    """What requests cost, as those say who send any; None if nobody does."""
    total = None
    if (cost := getattr(explainer, "cost", None)) is not None:
        total = cost(list(gathered.explained.values()))
    if (cost := getattr(simulator, "cost", None)) is not None:
        wanted: dict[tuple[int, SampleView], SampleView] = {}
        for i, held_out in enumerate(gathered.held_out.values()):
            for said in [i, *others[:, i].tolist()]:
                wanted |= {(said, one.view): one.view for one in held_out.every}
        more = cost(list(wanted.values()))
        total = more if total is None else total + more
    return total


def _warn(cost: Cost) -> None:
    warnings.warn(f"about to be sent: {cost}", CostWarning, stacklevel=3)


def _explained(
    gathered: Gathered,
    explainer: Explainer,
    simulator: Simulator,
    on_neuron: Callable[[int, int], object] | None,
) -> tuple[list[ExplainedNeuron], dict[Neuron, str]]:
    """Each neuron with its explanation, scored; and those about which there was no proper reply."""
    found, skipped = [], {}
    for done, (neuron, exemplars) in enumerate(gathered.explained.items(), start=1):
        try:
            explanation = explainer(exemplars)
            if not isinstance(explanation, Explanation):
                raise TypeError(
                    f"expected the explainer to return an Explanation, got {explanation!r}"
                )
            tested = simulated(gathered.held_out[neuron], explanation, simulator)
            found.append(ExplainedNeuron(explanation, score(tested), exemplars, tested))
        except ReplyError as error:
            skipped[neuron] = str(error)
        if on_neuron is not None:
            on_neuron(done, len(gathered.explained))
    return found, skipped


def _parameters(function: Any) -> Mapping[str, Any]:
    known = getattr(function, "parameters", None)
    name = getattr(function, "__name__", type(function).__name__)
    return {"function": name} if known is None else known


def _notes(
    gathered: Gathered,
    skipped: Mapping[Neuron, str],
    explained: Sequence[ExplainedNeuron],
    shuffled: np.ndarray,
    unanswered: int,
) -> tuple[str, ...]:
    notes = []
    for what, reasons in (("sample", gathered.left_out), ("neuron", skipped)):
        if reasons:
            which, why = next(iter(reasons.items()))
            some = f"1 {what} was" if len(reasons) == 1 else f"{len(reasons)} {what}s were"
            notes.append(f"{some} left out, first of all {which}: {why}")
    if constant := sum(bool(one.score.notes) for one in explained):
        some = "1 neuron has" if constant == 1 else f"{constant} neurons have"
        notes.append(f"{some} a score of 0 because something is constant")
    if lost := int(np.isnan(shuffled).sum()):
        notes.append(f"scores with explanations of others are missing ({lost}): no proper reply")
    if unanswered:
        notes.append("what had no proper reply is asked again when the same is explained again")
    if len(explained) == 1:
        notes.append("there is one neuron only, and so no chance level: explain several")
    return tuple(notes)

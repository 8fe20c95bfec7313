"""One pass over samples that reduces every neuron's activations while the model runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from vlm_lens.data import Sample
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.model import HookedVLM
from vlm_lens.results import provenance
from vlm_lens.statistics.attention import pattern_of
from vlm_lens.statistics.neuron_statistics import NeuronStatistics
from vlm_lens.statistics.plan import Plan
from vlm_lens.statistics.prepared import Answers, AnswerSource
from vlm_lens.statistics.streaming import Checkpoint, OnBatch, stream
from vlm_lens.statistics.token_types import MODALITIES, TokenType, parse_types


class SamplesLeftOutWarning(UserWarning):
    """Samples do not count, because they could not be prepared or are not finite."""


def collect(
    model: HookedVLM,
    samples: Iterable[Sample],
    *,
    sites: NamesFilter = "act",
    component: str | None = None,
    token_types: Sequence[str] | None = None,
    top_k: int = 50,
    top_over: str | None = None,
    active_above: int | float = 0.0,
    attention: bool = False,
    answers: AnswerSource | None = None,
    max_new_tokens: int = 64,
    own_answers: dict[int, list[int]] | None = None,
    batch_size: int = 16,
    first_sample: int = 0,
    checkpoint: Path | None = None,
    checkpoint_every: int = 32,
    on_batch: OnBatch | None = None,
) -> NeuronStatistics:
    """Counts, sums, extremes and top samples of every neuron, for each type of tokens.

    Activations are reduced in the hooks, on the device they are on; what is kept does not grow with
    the number of samples. Every position counts alike, whatever batch it is in.

    Args:
        model: The model; nothing about it is changed.
        samples: What it is given; may be an iterator.
        sites: Which hook points; see `vlm_lens.neurons.sites.sites`.
        component: Only this one, such as "language_model".
        token_types: Which positions are told apart: "image", "text", "answer text",
            "text+special"; see `vlm_lens.statistics.TokenType`. They may overlap. By default
            "image", "audio", "text" and "special".
        top_k: How many samples to remember of each neuron; 0 for none.
        top_over: The type of the tokens whose activations rank the samples; by default all of
            `token_types`.
        active_above: A neuron is active where its activation is larger than this.
        attention: Whether also to add up activations weighted by the attention that their position
            receives in the same layer; see `vlm_lens.statistics.attention.received`. It has the
            attention weights computed, which takes time.
        answers: None: the prompts alone; "own": with the model's greedy answers behind them, in
            one forward (teacher-forced); "given": with the samples' answers.
        max_new_tokens: At most so many tokens of an own answer.
        own_answers: The tokens of the model's own answers by the number of their sample, where they
            are known; others are added. A later pass over the same samples need not generate them.
        batch_size: How many samples run at once.
        first_sample: The number of the first sample, where these are a later part of a data set
            whose parts are collected apart and merged.
        checkpoint: A folder for what is done so far, written every `checkpoint_every` batches and
            when interrupted. The same call goes on from there, to the identical result. None writes
            nothing.
        checkpoint_every: See there.
        on_batch: Called after each batch with the number of batches done and of all (None where
            `samples` has no length).

    Returns:
        The statistics, on the CPU. ``left_out`` says which samples do not count, and why: they
        could not be prepared (an unreadable image, a missing or empty answer, a prompt beyond the
        model's context), or an activation was infinite or NaN.

    Raises:
        ValueError: An argument is out of its range, no sample of the first batch can be used, no
            hook point was reached, or the checkpoint belongs to something else.
        HookNameError: A site matches nothing.

    Warns:
        SamplesLeftOutWarning: Samples do not count.
        HookNeverFiredWarning: A hook point was reached by no sample. It is not in the result.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=4)
        >>> found = collect(model, samples, component="language_model", top_k=2)
        >>> found
        NeuronStatistics(2304 neurons at 6 hook points over 4 samples: image, text, special)
        >>> found.count["blocks.0.mlp.hook_act"]["image"]
        256
        >>> found.mean["blocks.0.mlp.hook_act"]["image"].shape
        torch.Size([384])
        >>> found.top["blocks.0.mlp.hook_act"].samples.shape
        torch.Size([2, 384])
    """
    # Analyses build on statistics, and so cannot be there before them.
    from vlm_lens.neurons.sites import sites as hook_points
    from vlm_lens.results.provenance import digest_of_weights

    _check(top_k, batch_size, first_sample, checkpoint_every)
    names = hook_points(model, sites, component=component)
    types = parse_types(MODALITIES if token_types is None else token_types)
    ranked = TokenType.union(types) if top_over is None else TokenType.parse(top_over)
    patterns = {name: pattern_of(name, model.hook_dict) for name in names} if attention else {}
    plan = Plan(
        model=model,
        names=names,
        types=tuple(types),
        ranked=ranked,
        patterns=patterns,
        top_k=top_k,
        active_above=active_above,
        answers=Answers(answers, max_new_tokens, own_answers),
    )
    parameters = {
        "sites": names,
        "token_types": [one.name for one in types],
        "top_k": top_k,
        "top_over": ranked.name,
        "active_above": active_above,
        "attention": attention,
        "answers": answers,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
    }
    empty = NeuronStatistics(
        token_types=tuple(one.name for one in types),
        ranges=((first_sample, first_sample),),
        parameters={**parameters, "provenance": provenance(model)},
    )
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(
            folder=checkpoint,
            kind="statistics-progress",
            belongs_to={**parameters, "model": digest_of_weights(model.hf_model)},
            every=checkpoint_every,
            pack=NeuronStatistics.packed,
            unpack=NeuronStatistics.unpacked,
        )
    found = stream(
        samples,
        plan,
        empty,
        first_sample=first_sample,
        batch_size=batch_size,
        checkpoint=kept,
        on_batch=on_batch,
    )
    return _finished(found, names)


def _check(top_k: int, batch_size: int, first_sample: int, checkpoint_every: int) -> None:
    least = {"top_k": (top_k, 0), "first_sample": (first_sample, 0)}
    least |= {"batch_size": (batch_size, 1), "checkpoint_every": (checkpoint_every, 1)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ValueError(f"expected {name} of at least {lowest}, got {value}")


def _finished(found: NeuronStatistics, names: Sequence[str]) -> NeuronStatistics:
    """The result on the CPU; warns of what is missing."""
    if found.left_out:
        number, reason = next(iter(found.left_out.items()))
        warnings.warn(
            f"{len(found.left_out)} of {found.n_samples + len(found.left_out)} samples do not "
            f"count; sample {number}: {reason}",
            SamplesLeftOutWarning,
            stacklevel=3,
        )
    if not found.sites:
        raise ValueError(
            f"no position of the types {list(found.token_types)} reached any of the "
            f"{len(names)} hook points: encoders and projectors need samples with images"
        )
    if silent := [name for name in names if name not in found.sites]:
        warnings.warn(
            f"{len(silent)} hook points have no statistics, because no sample reached them: "
            f"{', '.join(silent[:3])}{' ...' * (len(silent) > 3)}. Encoders and projectors need "
            "samples with images.",
            HookNeverFiredWarning,
            stacklevel=3,
        )
    return found.cpu(order=names)

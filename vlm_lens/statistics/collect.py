"""One pass over samples that reduces every neuron's activations while the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from vlm_lens.data import Sample
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs.token_types import MODALITIES, TokenType, parse_types
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.sites import sites as hook_points
from vlm_lens.passes import Passed, Reducer, Run, one_pass
from vlm_lens.passes.answers import Answers, AnswerSource
from vlm_lens.passes.data import ONE
from vlm_lens.passes.run import OnBatch
from vlm_lens.results import provenance
from vlm_lens.statistics.attention import pattern_of
from vlm_lens.statistics.neuron_statistics import NeuronStatistics
from vlm_lens.statistics.reducers import MomentsByType, TopOf, moments_in
from vlm_lens.statistics.site_statistics import SiteStatistics
from vlm_lens.statistics.top_samples import TopSamples


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
    _check(top_k, batch_size, first_sample, checkpoint_every)
    types = parse_types(MODALITIES if token_types is None else token_types)
    ranked = TokenType.union(types) if top_over is None else TokenType.parse(top_over)
    behind = Answers(answers, max_new_tokens, own_answers)
    names = hook_points(model, sites, component=component)
    for name in names if attention else ():
        pattern_of(name, model.hook_dict)
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
    passed = one_pass(
        model,
        samples,
        reducers_of(types, ranked, top_k=top_k, active_above=active_above, attention=attention),
        sites=names,
        answers=behind,
        first=first_sample,
        about=parameters,
        run=Run(
            batch_size=batch_size,
            folder=checkpoint,
            every=checkpoint_every,
            kind="statistics-progress",
            on_batch=on_batch,
        ),
    )
    n_samples = passed.n_samples[ONE] + len(left_out := passed.left_out.get(ONE, {}))
    return NeuronStatistics(
        token_types=tuple(one.name for one in types),
        ranges=((first_sample, first_sample + n_samples),),
        parameters={**parameters, "provenance": provenance(model)},
        sites=sites_of(passed, names, types, top_k),
        left_out=left_out,
    )


def reducers_of(
    types: Sequence[TokenType],
    ranked: TokenType,
    *,
    top_k: int,
    active_above: int | float,
    attention: bool,
) -> dict[str, Reducer]:
    """What is kept: moments, and top samples where any are wanted."""
    moments = MomentsByType.of(tuple(types), active_above=active_above, attention=attention)
    return {"moments": moments, **({"top": TopOf(top_k, ranked)} if top_k else {})}


def sites_of(
    passed: Passed, names: Sequence[str], types: Sequence[TokenType], top_k: int
) -> dict[str, SiteStatistics]:
    """The statistics of each hook point that has any."""
    moments, tops = passed.of("moments", ONE), passed.of("top", ONE)
    sites = {
        name: SiteStatistics(
            moments_in(moments[name]), TopSamples.of(top_k, tops.get(name, {})).settled()
        )
        for name in names
        if name in moments
    }
    if not sites:
        raise ValueError(
            f"no position of the types {[one.name for one in types]} reached any of the "
            f"{len(names)} hook points: encoders and projectors need samples with images"
        )
    return sites


def _check(top_k: int, batch_size: int, first_sample: int, checkpoint_every: int) -> None:
    least = {"top_k": (top_k, 0), "first_sample": (first_sample, 0)}
    least |= {"batch_size": (batch_size, 1), "checkpoint_every": (checkpoint_every, 1)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ValueError(f"expected {name} of at least {lowest}, got {value}")

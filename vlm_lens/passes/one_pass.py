"""Samples through the model once: hooks reduce what comes by, and nothing else is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.hooks import ArchitectureError, resolve_names
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.inputs import Inputs
from vlm_lens.inputs.samples import why_refused
from vlm_lens.model import HookedVLM
from vlm_lens.neurons.sites import Which
from vlm_lens.neurons.sites import sites as hook_points
from vlm_lens.passes.answers import Answers
from vlm_lens.passes.batch import Batch, Target, make_batch, scored_batch
from vlm_lens.passes.data import ONE, By, Chunk, Data, chunks_of, named
from vlm_lens.passes.fingerprint import fingerprint
from vlm_lens.passes.forwards import hooked
from vlm_lens.passes.reducers import Reducer, State
from vlm_lens.passes.run import Run
from vlm_lens.passes.watch import reduced
from vlm_lens.results import HALF_DONE, check_belongs, read_result, write_result
from vlm_lens.results.provenance import digest_of_weights
from vlm_lens.results.scores import Scores

Key = tuple[str, str, str]
"""Group, reducer and hook point."""

_FEW = 8
"""Where so many samples came and none counts, more are not tried."""

Under = Callable[[Batch], Sequence[Any]]
"""From a batch to hooks that change the model while it runs on it."""

REFUSED = (OSError, TypeError, ValueError)
"""What `HookedVLM.prepare` raises for a sample that it cannot prepare."""


class SamplesLeftOutWarning(UserWarning):
    """Samples do not count, because they could not be prepared or are not finite."""


@dataclass(frozen=True, eq=False)
class Passed:
    """What a pass gives; each batch gives a new one, so none is half done.

    Attributes:
        states: By group, reducer and hook point; those that nothing reached are missing.
        n_samples: How many samples of each group count.
        left_out: The samples that do not, by data set and number, and why.
        not_finite: By hook point, in how many samples what was measured is infinite or NaN.
        n_batches: How many batches are done.
        digest: A checksum of their samples, where something is kept.
    """

    states: dict[Key, State] = field(default_factory=dict)
    n_samples: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, dict[int, str]] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    n_batches: int = 0
    digest: str = ""

    def of(self, reducer: str, group: str) -> dict[str, State]:
        """The states of a reducer and a group, by hook point."""
        return {
            site: state
            for (of_group, of_reducer, site), state in self.states.items()
            if (of_group, of_reducer) == (group, reducer)
        }

    def means(
        self,
        reducer: str,
        *,
        per: Literal["samples", "positions"] = "samples",
        groups: Sequence[str] | None = None,
        method: str = "mean",
    ) -> Scores:
        """The means of a `Total`, with the groups as an axis.

        Args:
            reducer: Its name.
            per: Whether sums are divided by the number of samples or of positions.
            groups: Which groups, in order; by default all, as they came.
            method: What the scores are called.

        Returns:
            Scores with the axis "group"; NaN where a group reached no position of a hook point.
        """
        names = list(
            dict.fromkeys(group for group, _, _ in self.states) if groups is None else groups
        )
        states = {group: self.of(reducer, group) for group in names}
        like = {site: state["sum"] for of in states.values() for site, state in of.items()}

        def mean(group: str, site: str) -> Tensor:
            state = states[group].get(site)
            nothing = torch.full_like(like[site], torch.nan)
            return nothing if state is None else state["sum"] / state[per]

        scores = {site: torch.stack([mean(g, site) for g in names]).float() for site in like}
        return Scores(scores, method, axes={"group": tuple(names)})


def one_pass(
    model: HookedVLM,
    data: Data,
    reducers: Mapping[str, Reducer],
    *,
    sites: Which | NamesFilter,
    component: str | None = None,
    answers: Answers = Answers(),  # noqa: B008  it cannot change
    target: Target | None = None,
    by: By | None = None,
    first: int = 0,
    only: Collection[int] | None = None,
    under: Under | None = None,
    about: Mapping[str, Any] | None = None,
    run: Run = Run(),  # noqa: B008
) -> Passed:
    """Streams samples through the model, and reduces what comes by at hook points.

    A sample that cannot be prepared, or gives something that is not finite, is left out, with its
    reason; the others of its batch count.

    Args:
        model: The model.
        data: One data set, or several by name: samples or prepared inputs; they may be streamed.
        reducers: What is kept, by name.
        sites: Which hook points; see `vlm_lens.neurons.sites.sites`.
        component: Only this one.
        answers: What is behind the prompts.
        target: What is scored, where gradients are wanted; see `make_batches`.
        by: Says which group a sample is of; by default its data set.
        first: The number of each data set's first sample.
        only: The numbers of the samples that are looked at; by default all are.
        under: Gives the hooks that change the model for the length of a batch.
        about: Parameters that the states depend on, by which a checkpoint says what is different;
            the reducers' own are compared too.
        run: How it is done.

    Returns:
        The states, on the CPU.

    Raises:
        TypeError: Something is no sample.
        ValueError: There are no samples, none of them (or of the first eight) counts, or what is
            kept in the folder belongs to something else.
        HookNameError: A site matches nothing.

    Warns:
        SamplesLeftOutWarning: Samples do not count.
        HookNeverFiredWarning: A hook point was reached by no sample.

    Example:
        >>> from vlm_lens import load_samples
        >>> from vlm_lens.passes import Total, mean_of
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=8)
        >>> passed = one_pass(
        ...     model, samples, {"mean": Total(mean_of)}, sites="act", by=lambda s: s.category)
        >>> sum(passed.n_samples.values()), len(passed.left_out)
        (8, 0)
    """
    names = _names(model, sites, component)
    datasets = named(data)
    cut = chunks_of(datasets, run.batch_size, by=by, first=first, only=only, shard=run.shard)
    is_listed = all(isinstance(items, Sequence) for items in datasets.values())
    chunks: Iterable[Chunk] = list(cut) if is_listed else cut
    total = len(chunks) if isinstance(chunks, list) else None
    belongs_to: dict[str, Any] = {}
    if run.folder is not None:
        belongs_to = {
            **(about or {}),
            "sites": names,
            "batch_size": run.batch_size,
            "shard": list(run.shard),
            "answers": [answers.source, answers.max_new_tokens, target],
            "model": digest_of_weights(model.hf_model),
            "reducers": fingerprint([dict(reducers), under]),
        }
    step = _Step(model, names, reducers, answers, target, under)
    passed = _finished(step, iter(chunks), total, run, belongs_to)
    if not passed.n_batches:
        raise ValueError("expected at least one sample, got none")
    _check_any(passed)
    _tell(passed, names)
    on_cpu = {
        key: {name: tensor.cpu() for name, tensor in state.items()}
        for key, state in passed.states.items()
    }
    return replace(passed, states=on_cpu)


def _names(model: HookedVLM, sites: Which | NamesFilter, component: str | None) -> list[str]:
    """The hook points; a list of names may hold any, also those without neurons."""
    if component is None and not isinstance(sites, str):
        return resolve_names(sites, model.hook_dict)
    return hook_points(model, sites, component=component)


def merge(parts: Iterable[Passed], reducers: Mapping[str, Reducer]) -> Passed:
    """Several passes' states together, such as those of the shards of one.

    Args:
        parts: At least one.
        reducers: Those that they were made with.
    """
    whole, *others = parts
    for part in others:
        whole = _plus(whole, part, reducers)
    return whole


# Batch by batch -----------------------------------------------------------------------------------


def _finished(
    step: _Step, chunks: Any, total: int | None, run: Run, belongs_to: Mapping[str, Any]
) -> Passed:
    """Everything that is not done yet."""
    passed = saved = Passed() if run.folder is None else _resumed(run, chunks, belongs_to)
    try:
        for chunk in chunks:
            more = step(chunk)
            digest = "" if run.folder is None else chunk.chained(passed.digest)
            passed = replace(_plus(passed, more, step.reducers), digest=digest)
            _check_any(passed, least=_FEW)
            if run.on_batch is not None:
                run.on_batch(passed.n_batches, total)
            if run.folder is not None and passed.n_batches % run.every == 0:
                _save(run, passed, belongs_to)
                saved = passed
    finally:
        if run.folder is not None and passed is not saved:
            _save(run, passed, belongs_to)
    return passed


def _check_any(passed: Passed, *, least: int = 1) -> None:
    """Refuses to go on where nothing of so many samples or more counts."""
    n_left_out = sum(map(len, passed.left_out.values()))
    if not passed.n_samples and n_left_out >= least:
        raise ValueError(
            f"none of the first {n_left_out} samples can be used; {_first_left_out(passed)}"
        )


def _first_left_out(passed: Passed) -> str:
    """A sample that does not count, and why."""
    (dataset, numbers), *_ = passed.left_out.items()
    number, reason = next(iter(numbers.items()))
    of_dataset = "" if dataset == ONE else f" of {dataset!r}"
    return f"sample {number}{of_dataset}: {reason}"


def _tell(passed: Passed, names: Sequence[str]) -> None:
    """Warns of what is missing."""
    n_left_out = sum(map(len, passed.left_out.values()))
    if n_left_out:
        n_all = n_left_out + sum(passed.n_samples.values())
        warnings.warn(
            f"{n_left_out} of {n_all} samples do not count; {_first_left_out(passed)}",
            SamplesLeftOutWarning,
            stacklevel=4,
        )
    reached = {site for _, _, site in passed.states}
    if silent := [name for name in names if name not in reached]:
        warnings.warn(
            f"{len(silent)} hook points have nothing to show, because no sample reached them: "
            f"{', '.join(silent[:3])}{' ...' * (len(silent) > 3)}. Encoders and projectors need "
            "samples with images.",
            HookNeverFiredWarning,
            stacklevel=4,
        )


@dataclass(frozen=True, eq=False)
class _Step:
    """Takes one batch.

    Attributes:
        model: What runs.
        names: The hook points.
        reducers: What is kept.
        answers: What is behind the prompts.
        target: What is scored.
        under: Gives hooks that change the model.
    """

    model: HookedVLM
    names: list[str]
    reducers: Mapping[str, Reducer]
    answers: Answers
    target: Target | None
    under: Under | None

    def __call__(self, chunk: Chunk) -> Passed:
        return replace(self._taken(chunk), n_batches=1)

    def _taken(self, chunk: Chunk) -> Passed:
        """A chunk's states; where something is wrong, those of each sample that is not."""
        try:
            batch = self._prepared(chunk)
        except ArchitectureError:  # of the model, and so of all samples
            raise
        except REFUSED as error:
            if isinstance(chunk.content, Inputs):
                error.add_note(f"These are prepared inputs of data set {chunk.dataset!r}.")
                raise
            return self._without(chunk, why_refused(error), [])
        before = [] if self.under is None else self.under(batch)
        with hooked(self.model, before):
            states = reduced(self.model, batch, self.reducers, self.names)
        wrong = [site for (n, site), s in states.items() if not self.reducers[n].is_finite(s)]
        if wrong:
            return self._without(chunk, f"{wrong[0]} is infinite or NaN", wrong)
        in_group = {(chunk.group, *key): state for key, state in states.items()}
        return Passed(in_group, {chunk.group: len(chunk)})

    def _without(self, chunk: Chunk, reason: str, wrong: Sequence[str]) -> Passed:
        """The others of a chunk; or nothing of it, if it is one sample."""
        singles = chunk.singles()
        if len(singles) > 1:
            return merge([self._taken(single) for single in singles], self.reducers)
        left_out = {chunk.dataset: dict.fromkeys(chunk.numbers, reason)}
        return Passed(left_out=left_out, not_finite=dict.fromkeys(wrong, len(chunk)))

    def _prepared(self, chunk: Chunk) -> Batch:
        if self.target is None or isinstance(chunk.content, Inputs):
            return make_batch(self.model, chunk.content, self.answers, numbers=chunk.numbers)
        return scored_batch(
            self.model,
            chunk.content,
            self.target,
            max_new_tokens=self.answers.max_new_tokens,
            numbers=chunk.numbers,
        )


def _plus(one: Passed, other: Passed, reducers: Mapping[str, Reducer]) -> Passed:
    states = dict(one.states)
    for key, state in other.states.items():
        if key in states:
            # What was read from a file is on the CPU.
            like = {name: state.get(name, t) for name, t in states[key].items()}
            before = {name: t.to(like[name].device) for name, t in states[key].items()}
            states[key] = reducers[key[1]].plus(before, state)
        else:
            states[key] = state
    left_out = {
        name: {**one.left_out.get(name, {}), **other.left_out.get(name, {})}
        for name in {**one.left_out, **other.left_out}
    }
    return Passed(
        states=states,
        n_samples=_sums(one.n_samples, other.n_samples),
        left_out=left_out,
        not_finite=_sums(one.not_finite, other.not_finite),
        n_batches=one.n_batches + other.n_batches,
    )


def _sums(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


# On disk ------------------------------------------------------------------------------------------


def _save(run: Run, passed: Passed, belongs_to: Mapping[str, Any]) -> None:
    keys = list(passed.states)
    tensors = {
        f"{i}/{name}": tensor
        for i, key in enumerate(keys)
        for name, tensor in passed.states[key].items()
    }
    fields = {
        "of": dict(belongs_to),
        "keys": keys,
        "n_samples": passed.n_samples,
        "left_out": {
            name: {str(number): reason for number, reason in of.items()}
            for name, of in passed.left_out.items()
        },
        "not_finite": passed.not_finite,
        "n_batches": passed.n_batches,
        "digest": passed.digest,
    }
    assert run.folder is not None
    write_result(run.folder, kind=run.kind, fields=fields, tensors=tensors)


def _resumed(run: Run, chunks: Any, belongs_to: Mapping[str, Any]) -> Passed:
    """What is in the folder, with its samples taken out of the chunks; nothing if there is none."""
    assert run.folder is not None
    if not (run.folder / f"{run.kind}.json").exists():
        return Passed()
    fields, tensors = read_result(run.folder, kind=run.kind, loses=HALF_DONE)
    check_belongs(fields["of"], belongs_to, folder=run.folder)
    digest = ""
    for chunk in islice(chunks, fields["n_batches"]):
        digest = chunk.chained(digest)
    if digest != fields["digest"]:
        raise ValueError(
            f"the checkpoint in {str(run.folder)!r} belongs to other samples: it has "
            f"{fields['n_batches']} batches, and not those that were given now. Name another "
            "folder, or delete this one to start anew."
        )
    keys: list[Key] = [tuple(key) for key in fields["keys"]]
    states: dict[Key, State] = {key: {} for key in keys}
    for place, tensor in tensors.items():
        number, _, name = place.partition("/")
        states[keys[int(number)]][name] = tensor
    return Passed(
        states=states,
        n_samples=fields["n_samples"],
        left_out={
            name: {int(number): reason for number, reason in of.items()}
            for name, of in fields["left_out"].items()
        },
        not_finite=fields["not_finite"],
        n_batches=fields["n_batches"],
        digest=digest,
    )

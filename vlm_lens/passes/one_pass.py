"""Samples through the model once: hooks reduce what comes by, and nothing else is kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
from vlm_lens.passes.checkpoint import resumed, save
from vlm_lens.passes.data import By, Chunk, Data, chunks_of, named
from vlm_lens.passes.fingerprint import fingerprint
from vlm_lens.passes.forwards import hooked
from vlm_lens.passes.passed import Passed, merge
from vlm_lens.passes.reducers import Reducer
from vlm_lens.passes.run import Run
from vlm_lens.passes.watch import reduced
from vlm_lens.ranks import in_turn, is_first, n_ranks, read_once
from vlm_lens.results.provenance import digest_of_weights

_FEW = 8
"""Where so many samples came and none counts, more are not tried."""

Under = Callable[[Batch], Sequence[Any]]
"""From a batch to hooks that change the model while it runs on it."""

REFUSED = (OSError, TypeError, ValueError)
"""What `HookedVLM.prepare` raises for a sample that it cannot prepare."""


class SamplesLeftOutWarning(UserWarning):
    """Samples do not count, because they could not be prepared or are not finite."""


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
        ValueError: There are no samples, none of them (or of the first eight) counts, gradients are
            asked for where nothing is scored, or what is kept in the folder belongs to something
            else.
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
    if target is None and any(reducer.gradient for reducer in reducers.values()):
        raise ValueError(
            "gradients are those of a loss, so something has to be scored: pass target='own' (the "
            "model's own answers), 'answer' (the samples') or 'text' (the prompts)"
        )
    names = _names(model, sites, component)
    datasets = named(data)
    cut = chunks_of(datasets, run.batch_size, by=by, first=first, only=only, shard=run.shard)
    is_listed = all(isinstance(items, Sequence) for items in datasets.values())
    chunks: Iterable[Chunk] = list(cut) if is_listed else read_once(cut)
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
    return passed.on_cpu()


def _names(model: HookedVLM, sites: Which | NamesFilter, component: str | None) -> list[str]:
    """The hook points; a list of names may hold any, also those without neurons."""
    if component is None and not isinstance(sites, str):
        return resolve_names(sites, model.hook_dict)
    return hook_points(model, sites, component=component)


# Batch by batch -----------------------------------------------------------------------------------


def _finished(
    step: _Step, chunks: Any, total: int | None, run: Run, belongs_to: Mapping[str, Any]
) -> Passed:
    """Everything that is not done yet."""
    passed = saved = Passed() if run.folder is None else resumed(run, chunks, belongs_to)
    keeps = run.folder is not None and is_first()
    try:
        for chunk, more in in_turn(step, chunks):
            digest = "" if run.folder is None else chunk.chained(passed.digest)
            passed = replace(passed.plus(more, step.reducers), digest=digest)
            _check_any(passed, least=_FEW)
            if run.on_batch is not None:
                run.on_batch(passed.n_batches, total)
            if keeps and passed.n_batches % run.every == 0:
                save(run, passed, belongs_to)
                saved = passed
    finally:
        if keeps and passed is not saved:
            save(run, passed, belongs_to)
    return passed


def _check_any(passed: Passed, *, least: int = 1) -> None:
    """Refuses to go on where nothing of so many samples or more counts."""
    if not passed.n_samples and passed.n_left_out >= least:
        raise ValueError(
            f"none of the first {passed.n_left_out} samples can be used; {passed.first_left_out}"
        )


def _tell(passed: Passed, names: Sequence[str]) -> None:
    """Warns of what is missing."""
    if passed.n_left_out:
        n_all = passed.n_left_out + sum(passed.n_samples.values())
        warnings.warn(
            f"{passed.n_left_out} of {n_all} samples do not count; {passed.first_left_out}",
            SamplesLeftOutWarning,
            stacklevel=4,
        )
    reached = {site for _, _, site in passed.states}
    if silent := [name for name in names if name not in reached]:
        warnings.warn(
            f"{len(silent)} hook points have nothing to show, because no sample reached them, or "
            f"has a position there that counts: {', '.join(silent[:3])}"
            f"{' ...' * (len(silent) > 3)}. Encoders and projectors need samples with images.",
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
        passed = replace(self._taken(chunk), n_batches=1)
        return passed if n_ranks() == 1 else passed.on_cpu()

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

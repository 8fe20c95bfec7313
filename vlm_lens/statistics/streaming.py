"""Going through samples batch by batch, with progress that survives an interruption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from vlm_lens.data import Sample
from vlm_lens.data.digest import digest_of_samples
from vlm_lens.data.sample import check_are_samples
from vlm_lens.results import HALF_DONE, check_belongs, read_result, write_result

State = TypeVar("State")
Packed = tuple[dict[str, Any], dict[str, Tensor]]
OnBatch = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint(Generic[State]):
    """Where and how progress is kept.

    Attributes:
        folder: The folder.
        kind: What it is called there.
        belongs_to: What has to be the same for it to be of use.
        every: After so many batches it is written.
        pack: Takes a state apart into fields that JSON can hold, and tensors.
        unpack: Puts it together again.
    """

    folder: Path
    kind: str
    belongs_to: Mapping[str, Any]
    every: int
    pack: Callable[[State], Packed]
    unpack: Callable[[dict[str, Any], dict[str, Tensor]], State]


@dataclass(frozen=True, eq=False)
class _Progress(Generic[State]):
    """What is known after some batches; each batch gives a new one, so none is half done.

    Attributes:
        state: The result so far.
        n_batches: How many batches are done.
        n_samples: How many samples.
        digest: A checksum of these samples, where there is a checkpoint.
    """

    state: State
    n_batches: int = 0
    n_samples: int = 0
    digest: str = ""

    def skipped(self, batch: list[Sample], *, with_digest: bool) -> _Progress[State]:
        """The same with one more batch counted."""
        digest = _chained(self.digest, batch) if with_digest else ""
        return replace(
            self,
            n_batches=self.n_batches + 1,
            n_samples=self.n_samples + len(batch),
            digest=digest,
        )


def stream(
    samples: Iterable[Sample],
    step: Callable[[State, list[int], list[Sample]], State],
    start: State,
    *,
    batch_size: int,
    first_sample: int = 0,
    checkpoint: Checkpoint[State] | None = None,
    on_batch: OnBatch | None = None,
) -> State:
    """Takes all samples, a batch at a time; those that a checkpoint has are skipped.

    Args:
        samples: The samples; each is held for the length of its batch only.
        step: From a state, the numbers of some samples and the samples to the next state. It must
            not change the state that it is given.
        start: The state before all samples.
        batch_size: How many samples make a batch.
        first_sample: The number of the first one.
        checkpoint: Where progress is kept.
        on_batch: Called after each batch with the number of batches done and of all (None where
            `samples` has no length).

    Raises:
        TypeError: Something is no sample.
        ValueError: There are no samples, or the checkpoint belongs to something else.

    Example:
        >>> samples = [Sample(images=[], text=word) for word in ("one", "two", "three")]
        >>> stream(samples, lambda n, numbers, batch: n + sum(numbers), 0, batch_size=2)
        3
    """
    total = -(-len(samples) // batch_size) if isinstance(samples, Sized) else None
    batches = _batches(samples, batch_size)
    progress = _Progress(start)
    if checkpoint is not None:
        progress = _resumed(checkpoint, progress, batches)
    saved = progress
    try:
        for batch in batches:
            first = first_sample + progress.n_samples
            state = step(progress.state, [*range(first, first + len(batch))], batch)
            done = progress.skipped(batch, with_digest=checkpoint is not None)
            progress = replace(done, state=state)
            if on_batch is not None:
                on_batch(progress.n_batches, total)
            if checkpoint is not None and progress.n_batches % checkpoint.every == 0:
                _save(checkpoint, progress)
                saved = progress
    finally:
        if checkpoint is not None and progress is not saved:
            _save(checkpoint, progress)
    if not progress.n_samples:
        raise ValueError("expected at least one sample, got none")
    return progress.state


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    if isinstance(samples, Sample):
        check_are_samples(samples)
    rest = iter(samples)
    while batch := list(islice(rest, size)):
        check_are_samples(batch)
        yield batch


def _chained(digest: str, batch: list[Sample]) -> str:
    return hashlib.sha256(f"{digest} {digest_of_samples(batch)}".encode()).hexdigest()


def _save(checkpoint: Checkpoint[State], progress: _Progress[State]) -> None:
    fields, tensors = checkpoint.pack(progress.state)
    content = {
        "of": dict(checkpoint.belongs_to),
        "n_batches": progress.n_batches,
        "samples": progress.digest,
        "state": fields,
    }
    write_result(checkpoint.folder, kind=checkpoint.kind, fields=content, tensors=tensors)


def _resumed(
    checkpoint: Checkpoint[State], fresh: _Progress[State], batches: Iterator[list[Sample]]
) -> _Progress[State]:
    """The progress in a folder, with its samples taken out of `batches`."""
    if not (checkpoint.folder / f"{checkpoint.kind}.json").exists():
        return fresh
    fields, tensors = read_result(checkpoint.folder, kind=checkpoint.kind, loses=HALF_DONE)
    check_belongs(fields["of"], checkpoint.belongs_to, folder=checkpoint.folder)
    progress = fresh
    for batch in islice(batches, fields["n_batches"]):
        progress = progress.skipped(batch, with_digest=True)
    if progress.digest != fields["samples"]:
        raise ValueError(
            f"the checkpoint in {str(checkpoint.folder)!r} belongs to other samples: it has "
            f"{fields['n_batches']} batches, and not those that were given now. Name another "
            "folder, or delete this one to start anew."
        )
    return replace(progress, state=checkpoint.unpack(fields["state"], tensors))

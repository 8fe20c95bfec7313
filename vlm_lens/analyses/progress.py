"""Sums over batches that survive an interruption, and the file that they survive in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vlm_lens.results import HALF_DONE, check_belongs, read_result, write_result

KIND = "progress"
"""The kind of result that progress is on disk."""

_SAVE_EVERY = 8
"""After so many batches a checkpoint is written."""


@dataclass(frozen=True, eq=False)
class Progress:
    """What is known after some batches; each step gives a new one, so none is half done.

    Attributes:
        n_batches: How many batches are done.
        sums: By hook name, each neuron's sum over their samples, float64.
        left_out: The samples among them that do not count: what was measured was not finite.
        not_finite: By hook name, in how many samples it was not.
    """

    n_batches: int = 0
    sums: dict[str, Float[Tensor, " d"]] = field(default_factory=dict)
    left_out: tuple[int, ...] = ()
    not_finite: dict[str, int] = field(default_factory=dict)

    def plus(
        self,
        sums: Mapping[str, Float[Tensor, " d"]],
        *,
        left_out: Sequence[int] = (),
        not_finite: Mapping[str, int] | None = None,
    ) -> Progress:
        """This and one more batch."""
        counts = not_finite or {}
        names = [*self.not_finite, *(name for name in counts if name not in self.not_finite)]
        return Progress(
            n_batches=self.n_batches + 1,
            sums={**self.sums, **{name: _added(self.sums, name, sums[name]) for name in sums}},
            left_out=(*self.left_out, *left_out),
            not_finite={n: self.not_finite.get(n, 0) + counts.get(n, 0) for n in names},
        )

    def save(self, folder: str | os.PathLike[str], *, of: Mapping[str, Any]) -> None:
        """Writes it into a folder, with what it belongs to."""
        fields = {
            "of": dict(of),
            "n_batches": self.n_batches,
            "names": list(self.sums),
            "left_out": self.left_out,
            "not_finite": self.not_finite,
        }
        write_result(folder, kind=KIND, fields=fields, tensors=self.sums)

    @classmethod
    def resume(cls, folder: str | os.PathLike[str], *, of: Mapping[str, Any]) -> Progress:
        """What `save` wrote into a folder; nothing is done yet where there is no such file.

        Raises:
            ValueError: It belongs to something else than ``of``, or is damaged.
        """
        if not (Path(folder) / f"{KIND}.json").exists():
            return cls()
        fields, tensors = read_result(folder, kind=KIND, loses=HALF_DONE)
        check_belongs(fields["of"], of, folder=folder)
        return cls(
            n_batches=fields["n_batches"],
            sums={name: tensors[name] for name in fields["names"]},
            left_out=tuple(fields["left_out"]),
            not_finite=fields["not_finite"],
        )


def finish(
    step: Callable[[Progress], Progress],
    *,
    n_batches: int,
    checkpoint: Path | None,
    belongs_to: Mapping[str, Any],
    on_batch: Callable[[int, int], None] | None,
) -> Progress:
    """Takes all batches that are not done yet.

    Args:
        step: Takes one more.
        n_batches: How many there are.
        checkpoint: The folder that progress is read from, and written to every few batches and
            when something interrupts; None for neither.
        belongs_to: What has to be the same for progress to be of use.
        on_batch: Called after each batch with the number of batches done and of all.

    Raises:
        ValueError: The checkpoint belongs to something else, or is damaged.
    """
    progress = Progress() if checkpoint is None else Progress.resume(checkpoint, of=belongs_to)
    saved = progress
    try:
        while progress.n_batches < n_batches:
            progress = step(progress)
            if on_batch is not None:
                on_batch(progress.n_batches, n_batches)
            if checkpoint is not None and progress.n_batches % _SAVE_EVERY == 0:
                progress.save(checkpoint, of=belongs_to)
                saved = progress
    finally:
        if checkpoint is not None and progress is not saved:
            progress.save(checkpoint, of=belongs_to)
    return progress


def _added(sums: Mapping[str, Tensor], name: str, more: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    more = more.cpu().double()
    return sums[name] + more if name in sums else more

"""How work over samples is done: how much at once, where it is kept, which share, who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vlm_lens.ranks import is_first, shared
from vlm_lens.results import Result
from vlm_lens.whole_file import DamagedError

R = TypeVar("R", bound=Result)

CHECKPOINT = "checkpoint"
"""The folder for what is half done, inside of that of what it will be."""

OnBatch = Callable[[int, int | None], None]
"""Is told after each batch how many are done, and how many there are (None: not known)."""

Tell = Callable[[str, int, int | None], None]
"""Is told the same of each step of some work, with its name first."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a pass over samples is done, or work of several steps.

    Attributes:
        batch_size: How many samples run at once.
        folder: What is done is kept here, and the same call goes on from it. None keeps nothing.
        every: After so many batches it is written, and when something interrupts.
        kind: What it is called there.
        shard: Which share of the batches is done: ``(i, n)`` takes batches i, i + n, i + 2n, ...
            Merged, the shares of all i give what one pass over everything does.
        on_batch: Is told after each batch.
        tell: Is told so of each step.

    Raises:
        ValueError: A number is out of its range.

    Example:
        >>> Run(batch_size=4, shard=(1, 2)).shard
        (1, 2)
    """

    batch_size: int = 16
    folder: Path | None = None
    every: int = 8
    kind: str = "pass"
    shard: tuple[int, int] = (0, 1)
    on_batch: OnBatch | None = None
    tell: Tell | None = None

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("every", self.every)):
            if value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        part, n = self.shard
        if not 0 <= part < n:
            raise ValueError(f"expected shard (i, n) with i from 0 to n - 1, got {self.shard}")

    def step(self, name: str) -> Run:
        """One step of the work: a folder inside this one's, and its name told with each batch."""
        folder = None if self.folder is None else self.folder / name
        on_batch = None if self.tell is None else partial(self.tell, name)
        return replace(self, folder=folder, on_batch=on_batch)

    def kept(self, name: str, kind: type[R], make: Callable[[Run], R]) -> R:
        """A result that is in the folder from an earlier run, or else is made and written now.

        Args:
            name: Of the step, and of its folder; "" for this folder, and the kind's name: made anew
                of what is half done, if it is damaged.
            kind: The result's class.
            make: Makes it, with a run whose folder is for what is half done.

        Raises:
            ValueError: It is there, but cannot be read.

        Example:
            >>> from tempfile import mkdtemp
            >>> from vlm_lens.results.scores import Scores
            >>> run = Run(folder=Path(mkdtemp()))
            >>> def make(run: Run) -> Scores:
            ...     print("made once")
            ...     return Scores({}, "mine")
            >>> run.kept("scores", Scores, make), run.kept("scores", Scores, make)
            made once
            (Scores(mine: 0 neurons at 0 hook points), Scores(mine: 0 neurons at 0 hook points))
        """
        step = self.step(name) if name else replace(self.step(kind.KIND), folder=self.folder)
        if step.folder is None:
            return make(step)
        file = step.folder / f"{kind.KIND}.json"
        if shared(lambda: _is_there(kind, file, has_half=not name)):
            return kind.load(step.folder)
        made = make(replace(step, folder=step.folder / CHECKPOINT))
        if is_first():
            made.save(step.folder)
        return made

    @property
    def keywords(self) -> dict[str, Any]:
        """The same as functions take it that have a keyword for each."""
        return {**self.asking, "checkpoint": self.folder}

    @property
    def asking(self) -> dict[str, Any]:
        """The same as functions take it that keep nothing half done."""
        return {"batch_size": self.batch_size, "on_batch": self.on_batch}


def _is_there(kind: type[Result], file: Path, *, has_half: bool) -> bool:
    """Whether a result is in its file; a damaged one goes, if what is half done gives it again."""
    if file.exists() and has_half:
        try:
            kind.load(file.parent)
        except DamagedError:
            file.unlink()
    return file.exists()

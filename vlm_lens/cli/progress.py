"""What a command says on stderr while it works: steps, and bars where somebody looks on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_lens.masking.measurement import Measurement

_SHOWN = ("perplexity_ratio", "agreement")
"""The metrics that are measured at every k."""


class Steps:
    """Says on stderr what comes next, and how long it has taken up to here."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        if "torch" not in sys.modules:
            self("starting: the libraries take some seconds")

    def __call__(self, what: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {what}", file=sys.stderr, flush=True)


class Bar:
    """A progress bar on stderr; none where stderr is a file.

    Args:
        bar: One of tqdm's.
    """

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def scored(self, done: int, total: int | None) -> None:
        """Shows how many batches are done; for `can.score`."""
        self._bar.total, self._bar.n = total, done
        self._bar.refresh()

    def measured(self, measurement: Measurement) -> None:
        """Shows the k that was measured and what came out; for `can.find_critical`."""
        found = {name: measurement.metrics.get(name) for name in _SHOWN}
        shown = {name: f"{value:.4g}" for name, value in found.items() if value is not None}
        self._bar.set_postfix({"k": measurement.k, **shown}, refresh=False)
        self._bar.update()


class Bars:
    """A bar for each step of some work, one after the other; for `Run.tell`."""

    def __init__(self) -> None:
        self._stack, self._name = ExitStack(), ""

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tell(self, name: str, done: int, total: int | None) -> None:
        """Shows how many batches of a step are done."""
        if name != self._name:
            self._stack.close()
            self._name, self._bar = name, self._stack.enter_context(bar(name, "batches"))
        self._bar.scored(done, total)


@contextmanager
def bar(what: str, unit: str) -> Iterator[Bar]:
    """A bar that is there for as long as something takes.

    Args:
        what: What is done.
        unit: What is counted.
    """
    from tqdm import tqdm

    with tqdm(desc=what, unit=f" {unit}", file=sys.stderr, disable=None) as shown:
        yield Bar(shown)

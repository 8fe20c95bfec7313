"""Searches for critical neurons on the clock: the naive loop, ours, and ours over a bridge."""

from __future__ import annotations

import copy
import gc
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.contenders import build_bridge
from benchmarks.critical_models import Case
from benchmarks.critical_naive import RATIO, SIMILARITY, Found, Naive
from benchmarks.measure import CLOCKS
from vlm_lens.analyses.collapse import find_collapse
from vlm_lens.analyses.collapse_search import SearchOptions
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.masking import AGREEMENT as AGREEMENT_METRIC
from vlm_lens.masking import PERPLEXITY_RATIO, Criterion

PLAIN = "find_critical"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "reuse=False": {"reuse": False},
    "width=4": {"width": 4},
    "probes=64": {"probes": 64},
}
"""Options of the search, by what the table calls them."""

EXHAUSTIVE = "exhaustive=True"

BRIDGE_CRITERIA = (
    Criterion(PERPLEXITY_RATIO, at_least=RATIO),
    Criterion(AGREEMENT_METRIC, at_most=SIMILARITY),
)
"""What can be judged without generation, which a bridge is not used for."""

_CHECKS = 2
"""Plain runs that verify k* and k* - 1, beside the measurements of the curve."""


class Stopwatch:
    """Times calls by one of the benchmarks' clocks."""

    def __init__(self, clock: str) -> None:
        self._now = CLOCKS[clock]

    def __call__(self, run: Callable[[], Any]) -> tuple[float, Any]:
        """Seconds, and what the call returned."""
        gc.collect()
        start = self._now()
        result = run()
        return self._now() - start, result


def compare(case: Case, *, rounds: int, clock: str, every: int | None = None) -> dict[str, Any]:
    """Everything that is reported of one case.

    The naive loop goes on from round to round, and all variants of our search run before each of
    its pieces, so that a machine that slows down slows down both.

    Args:
        case: What is searched.
        rounds: How many times our search is timed.
        clock: Of `CLOCKS`.
        every: Leave out all but each so-many-th k of the naive loop and extrapolate its time; None
            for the whole loop, and the exhaustive variant of ours besides.
    """
    watch = Stopwatch(clock)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    found: dict[str, CriticalNeurons] = {}
    loop = Loop(case, watch, every=every)
    for i in range(rounds):
        for name, options in VARIANTS.items():
            taken, found[name] = watch(lambda options=options: search(case, **options))
            seconds[name].append(taken)
        expected = found[PLAIN].k or len(case.ranking)
        loop.run(until=expected * (i + 1) // rounds if i + 1 < rounds else len(case.ranking))
    if every is None:
        taken, found[EXHAUSTIVE] = watch(lambda: search(case, exhaustive=True))
        seconds[EXHAUSTIVE] = [taken]
    return {
        "what": case.what,
        "samples": case.n_samples,
        "ranked": len(case.ranking),
        "naive": loop.result(found[PLAIN].k),
        "ours": {name: _entry(found[name], seconds[name]) for name in found},
    }


def search(case: Case, *, model: Any = None, **options: Any) -> CriticalNeurons:
    """Our search, by default with HookedVLM."""
    return find_collapse(
        case.model if model is None else model,
        case.batches,
        case.ranking,
        method="CAN",
        options=SearchOptions(max_new_tokens=case.max_new_tokens, **options),
    )


def _entry(found: CriticalNeurons, seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "k": found.k,
        "onset": found.stages.onset,
        "measurements": len(found.curve) + (_CHECKS if found.k is not None else 0),
        "seconds": round(statistics.median(seconds), 3),
        "rounds": len(seconds),
    }


# The naive loop ---------------------------------------------------------------------------------


class Loop:
    """The naive search in pieces: k = 1, 2, 3, ... until the model collapses.

    Args:
        case: What is searched.
        watch: What its time is taken with.
        every: Only each so-many-th k is measured; None for all.
    """

    def __init__(self, case: Case, watch: Stopwatch, *, every: int | None = None) -> None:
        self._naive, self._watch, self._every = Naive(case), watch, every
        self._n = len(case.ranking)
        self.curve: list[Found] = []
        self._seconds = 0.0

    def run(self, *, until: int) -> None:
        """Goes on to the next k, up to one, unless the model has collapsed."""
        with self._naive.hooked():
            taken, _ = self._watch(lambda: self._advance(until))
        self._seconds += taken

    def _advance(self, until: int) -> None:
        step = self._every or 1
        done = self.curve[-1].k if self.curve else 0
        for k in range(done + step, until + 1, step):
            if self.curve and self.curve[-1].collapsed:
                return
            self.curve.append(self._naive.measure(k))

    def result(self, ours: int | None) -> dict[str, Any]:
        """What is reported of the loop; where it left k out, it looks at ours and the one before.

        Args:
            ours: The k* that our search found.
        """
        if self._every is None:
            k, seconds, measured = (
                self._first(lambda found: found.collapsed),
                self._seconds,
                len(self.curve),
            )
        else:
            measured = len(self.curve)
            k = ours if self._agrees(ours) else None
            seconds = self._seconds / measured * (ours or self._n)
        return {
            "k": k,
            "onset": self._first(lambda found: found.degraded) if self._every is None else None,
            "k_without_generation": self._first(_bridge_criteria),
            "measurements": measured,
            "seconds": round(seconds, 3),
            "extrapolated": self._every is not None,
            "rises_at_every_k": all(a.ratio < b.ratio for a, b in pairwise(self.curve)),
        }

    def _first(self, test: Callable[[Found], bool]) -> int | None:
        return next((found.k for found in self.curve if test(found)), None)

    def _agrees(self, ours: int | None) -> bool:
        """Whether the model collapses at our k*, and neither before it nor at any k measured."""
        if ours is None:
            return False
        with self._naive.hooked():
            near = [self._naive.measure(k).collapsed for k in (ours - 1, ours)]
        before = [found.collapsed for found in self.curve if found.k < ours]
        return near == [False, True] and not any(before)


def _bridge_criteria(found: Found) -> bool:
    return found.ratio >= RATIO and found.agreement <= SIMILARITY


# TransformerBridge ------------------------------------------------------------------------------


def compare_bridge(case: Case, *, rounds: int, clock: str) -> dict[str, Any]:
    """The same search over HookedVLM's hooks and over those of a bridge around a copy."""
    watch = Stopwatch(clock)
    models = {
        "HookedVLM": case.model,
        "TransformerBridge": build_bridge(copy.deepcopy(case.model.hf_model)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    found: dict[str, CriticalNeurons] = {}
    for _ in range(rounds):
        for name, model in models.items():
            run = lambda model=model: search(case, model=model, collapse=BRIDGE_CRITERIA)  # noqa: E731
            taken, found[name] = watch(run)
            seconds[name].append(taken)
    return {"over": {name: _entry(found[name], seconds[name]) for name in models}}

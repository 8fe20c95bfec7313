"""How time is taken: interleaved rounds, a clock, a heap setting, and ratios within a round."""

from __future__ import annotations

import ctypes
import gc
import random
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.contenders import HF, VLM_LENS, Contender, Run
from benchmarks.tasks import TASKS

Times = dict[str, dict[str, list[float]]]
"""Seconds of every round, by task and contender."""

WARM_UPS = 2
"""Runs of each task that are not counted."""

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
"""Time that this process spent computing, all threads added up, or time that passed."""

HEAPS = ("kept", "returned")
"""Freed memory stays with the process, or goes back to the system as glibc sees fit."""


@torch.no_grad()
def measure(contenders: Mapping[str, Contender], *, rounds: int, clock: str) -> Times:
    """Time every task of every contender once a round, in random order."""
    jobs = [(task, name, run) for name, c in contenders.items() for task, run in c.runs.items()]
    for _, _, run in jobs * WARM_UPS:
        run()
    times: Times = {task: {} for task in TASKS}
    order = random.Random(0)
    for _ in range(rounds):
        order.shuffle(jobs)
        gc.collect()
        gc.disable()
        for task, name, run in jobs:
            times[task].setdefault(name, []).append(seconds(run, clock=clock))
        gc.enable()
    return times


def seconds(run: Run, *, clock: str) -> float:
    """Time one run; what it returns is freed after the clock has stopped."""
    now = CLOCKS[clock]
    start = now()
    kept = run()
    stop = now()
    del kept
    return stop - start


def keep_heap() -> None:
    """Have glibc keep freed memory, in pieces up to 32 MiB, for the next allocation.

    By default it returns a dropped cache to the system, and whoever runs next, plain Hugging Face
    included, pays for getting every page anew. GPU memory is kept by torch in any case.
    """
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    trim_threshold, mmap_threshold = -1, -3
    if not (mallopt(trim_threshold, 2**31 - 1) and mallopt(mmap_threshold, 2**25)):
        raise RuntimeError("glibc refuses to keep freed memory: use --heap returned")


def summarise(times: Times, contenders: Mapping[str, Contender]) -> dict[str, dict[str, Any]]:
    """What the tables show, by task and contender: a summary, or the reason why there is none."""
    return {
        task: {name: _cell(times, task, name, by) for name, by in contenders.items()}
        for task in TASKS
    }


def _cell(times: Times, task: str, name: str, contender: Contender) -> dict[str, Any]:
    if task in contender.cannot:
        return {"reason": contender.cannot[task]}
    note = {"note": contender.notes[task]} if task in contender.notes else {}
    return summary(times[task][name], times[TASKS[task].base][HF]) | note


def summary(taken: list[float], plain: list[float]) -> dict[str, Any]:
    """Median time, and median and quartiles of the ratio to Hugging Face in the same round."""
    ratios = [ours / theirs for ours, theirs in zip(taken, plain, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ms": round(1e3 * statistics.median(taken), 3),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }


def hook_cost(times: Times, n_kept: Mapping[str, int]) -> dict[str, float]:
    """Microseconds that `run_with_cache` adds to a forward for each hook point that it keeps."""
    return {
        task: round(1e6 * _median_extra(times[task][VLM_LENS], times["forward"][HF]) / count, 1)
        for task, count in n_kept.items()
    }


def _median_extra(taken: list[float], plain: list[float]) -> float:
    return statistics.median(ours - theirs for ours, theirs in zip(taken, plain, strict=True))

"""What CAN's score costs beside the forward and backward that it cannot do without."""

from __future__ import annotations

import ctypes
import gc
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.critical_models import N_NEW, build_processor, random_samples
from benchmarks.measure import CLOCKS, WARM_UPS, summary
from benchmarks.models import SIZES, build
from vlm_lens import HookedVLM, load_samples
from vlm_lens.analyses import can
from vlm_lens.analyses.importance import Importance
from vlm_lens.data import Sample
from vlm_lens.loading import BUNDLED
from vlm_lens.neurons.sites import sites
from vlm_lens.passes.batch import Batch, make_batches
from vlm_lens.passes.watch import reduced

BARE, SCORE, WHOLE = "bare", "score", "whole"
JOBS = {
    BARE: "Hugging Face: forward and backward",
    SCORE: "scored besides, every output channel of every component",
    WHOLE: "`can.score`: images and prompts prepared, answers generated, scored",
}
TARGET = 1.15
"""The most that scoring may take of the time of a bare forward and backward."""

Job = Callable[[], Any]


def measure_score(name: str, *, n_samples: int, rounds: int, clock: str) -> dict[str, Any]:
    """Times and peaks of memory of all jobs on one model."""
    model, samples, n_new = _subject(name, n_samples)
    jobs = build_jobs(model, samples, n_new)
    times = _interleaved(jobs, rounds=rounds, clock=clock)
    peaks = {job: peak_memory(run) for job, run in jobs.items()}
    return {
        "samples": n_samples,
        "hook_points": len(sites(model)),
        "jobs": {job: {**summary(times[job], times[BARE]), "peak_mib": peaks[job]} for job in jobs},
    }


def _subject(name: str, n_samples: int) -> tuple[HookedVLM, list[Sample], int]:
    """A model, samples for it, and how many tokens it answers at most."""
    if name == BUNDLED:
        return HookedVLM.from_pretrained(name), load_samples(name, n=n_samples), 20
    model = HookedVLM(build(name).hf_model, processor=build_processor(SIZES[name]))
    return model, random_samples(SIZES[name], n=n_samples), N_NEW


def build_jobs(model: HookedVLM, samples: Sequence[Sample], n_new: int) -> dict[str, Job]:
    """What is timed, by name; all samples are one batch."""
    n = len(samples)
    [batch] = make_batches(model, samples, batch_size=n, max_new_tokens=n_new)
    names, importance = sites(model), Importance(alpha=0.5)
    return {
        BARE: lambda: forward_and_backward(model.hf_model, batch),
        SCORE: lambda: reduced(model, batch, {"importance": importance}, names),
        WHOLE: lambda: can.score(model, samples, batch_size=n, max_new_tokens=n_new),
    }


def forward_and_backward(hf_model: Any, batch: Batch) -> float:
    """The same loss and the same graph, from pixels and embeddings on; no weight gets a gradient.

    Returns:
        The loss.
    """
    pixels = batch.arguments["pixel_values"].detach().clone().requires_grad_()
    columns = batch.scored.any(0).nonzero()[:, 0]
    with _frozen(hf_model), torch.enable_grad():
        arguments = {**batch.arguments, "pixel_values": pixels}
        logits = hf_model(**arguments, use_cache=False, logits_to_keep=columns).logits
        scored, targets = batch.scored[:, columns], batch.targets[:, columns]
        each = F.cross_entropy(logits[scored], targets[scored], reduction="none")
        n_tokens = scored.sum(1)[scored.nonzero()[:, 0]]
        loss = (each / n_tokens).sum()
        loss.backward()
    return loss.item()


@contextmanager
def _frozen(hf_model: Any) -> Iterator[None]:
    """No weight gets a gradient, but token embeddings do."""
    parameters = [parameter for parameter in hf_model.parameters() if parameter.requires_grad]

    def start_graph(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output.requires_grad_()

    handle = hf_model.get_input_embeddings().register_forward_hook(start_graph)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        handle.remove()
        for parameter in parameters:
            parameter.requires_grad_(True)


def _interleaved(jobs: dict[str, Job], *, rounds: int, clock: str) -> dict[str, list[float]]:
    """Seconds of every round; a round does every job once, in random order."""
    for run in list(jobs.values()) * WARM_UPS:
        run()
    now, order = CLOCKS[clock], random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    names = list(jobs)
    for _ in range(rounds):
        order.shuffle(names)
        gc.collect()
        for name in names:
            start = now()
            jobs[name]()
            times[name].append(now() - start)
    return times


def peak_memory(run: Job) -> float | None:
    """By how many MiB a run makes the process larger at most; None where Linux cannot tell."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        run()
        return round((_status("VmHWM") - before) / 1024, 1)
    except OSError:
        return None


def _status(name: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [value] = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(value)

"""What hooks cost: vlm_lens, TransformerBridge and nnsight against plain Hugging Face.

All contenders run in one process, on the same weights: vlm_lens wraps the very model that plain
Hugging Face runs; TransformerBridge and nnsight change what they wrap and get a copy each. A round
runs every task of every contender once, in random order. A ratio is a contender's time over Hugging
Face's in the same round, and the table shows the median of these ratios. What slows the machine
down for longer than a round slows both sides of a ratio; with one thread and ``--clock cpu`` (the
defaults), the time that other processes take is not counted at all.

A task's time covers setting hooks, running, collecting and removing hooks, not freeing what was
kept. The first two runs of each task are not counted. Keeping memory costs page faults where the
heap is given back to the system between runs, so that ``--heap both`` (the default) measures all of
it twice, one process after the other.

    python benchmarks/overhead.py                           # the 39M model, and the bundled one
    python benchmarks/overhead.py --model small --rounds 100 --heap kept --markdown
    python benchmarks/overhead.py --families                # Hugging Face and vlm_lens on each
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above is the one to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from benchmarks.checks import check, same_tokens  # noqa: E402
from benchmarks.contenders import VLM_LENS, build_contenders  # noqa: E402
from benchmarks.families import available as families  # noqa: E402
from benchmarks.families import families_table, measure_family  # noqa: E402
from benchmarks.measure import (  # noqa: E402
    CLOCKS,
    HEAPS,
    hook_cost,
    keep_heap,
    measure,
    summarise,
)
from benchmarks.models import available, build  # noqa: E402
from benchmarks.report import Results, readme_table, report  # noqa: E402
from benchmarks.surroundings import surroundings  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    heaps = HEAPS if options.heap == "both" else (options.heap,)
    results = in_own_processes(heaps, options)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    if options.families:
        for heap, run in results.items():
            print(f"\nHeap {heap}\n\n{families_table(run['families'])}")
        return
    print(report(results))
    if options.markdown:
        print(f"\n<!-- overhead -->\n{readme_table(results)}\n<!-- /overhead -->")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options that can be measured; any other combination is refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", choices=available(), help="may be repeated")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="cpu needs one thread")
    parser.add_argument("--heap", choices=[*HEAPS, "both"], default="both", help="of freed memory")
    parser.add_argument("--families", action="store_true", help="a row a family, for vlm_lens")
    parser.add_argument("--family", action="append", choices=families(), help="may be repeated")
    parser.add_argument("--out", type=Path, help="overhead.json or families.json beside this file")
    parser.add_argument("--markdown", action="store_true", help="print the README's tables too")
    options = parser.parse_args(arguments)
    options.families = options.families or options.family is not None
    if options.out is None:
        name = "families.json" if options.families else "overhead.json"
        options.out = Path(__file__).with_name(name)
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock cpu adds up all threads' time: use --clock wall with more than one")
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: the table shows quartiles")
    if options.heap != "returned" and platform.libc_ver()[0] != "glibc":
        parser.error("keeping the heap needs glibc: use --heap returned")
    return options


def in_own_processes(heaps: Sequence[str], options: argparse.Namespace) -> Results:
    """One new process a heap setting, one after the other: a setting cannot be taken back."""
    with ProcessPoolExecutor(
        max_workers=1, max_tasks_per_child=1, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        runs = pool.map(partial(measure_heap, options=options), heaps)
        return dict(zip(heaps, runs, strict=True))


def measure_heap(heap: str, *, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is reported of one heap setting; sets up the process it runs in."""
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "run_with_cache: skipped")  # hooks the bridge leaves off
    torch.set_num_threads(options.threads)
    if heap == "kept":
        keep_heap()
    how = {"rounds": options.rounds, "clock": options.clock}
    if options.families:
        names = options.family or families()
        return {
            **surroundings(),
            **how,
            "families": {name: measure_family(name, **how) for name in names},
        }
    names = options.model or [name for name in available() if name != "small"]
    return {
        **surroundings(),
        **how,
        "models": {name: measure_model(name, **how) for name in names},
    }


def measure_model(name: str, *, rounds: int, clock: str) -> dict[str, Any]:
    """Everything that is reported of one model: its size, the checks, the times."""
    subject = build(name)
    contenders = build_contenders(subject)
    difference, agree = check(contenders), same_tokens(contenders)
    times = measure(contenders, rounds=rounds, clock=clock)
    return {
        "parameters": subject.n_parameters,
        "dtype": str(subject.hf_model.dtype).removeprefix("torch."),
        "positions": subject.inputs["input_ids"].shape[1],
        "image_tokens": subject.hf_model.config.image_seq_length,
        "tasks": summarise(times, contenders),
        "logits_differ_by": difference,
        "ablated_tokens_agree": agree,
        "microseconds_per_hook_point": hook_cost(times, contenders[VLM_LENS].n_kept),
    }


if __name__ == "__main__":
    main()

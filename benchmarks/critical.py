"""How fast critical neurons are found: our search against masking one more neuron at a time.

The naive loop is plain Hugging Face and PyTorch: hooks that write zeros, one more channel each
time, and everything runs again, image features included. Both sides look at the same batches with
the same ranking and the same criteria, and both generate answers only where the perplexity says so.
They run in one process, in turns: our search, a piece of the naive loop, our search again.

- shapes-llava: its neurons ranked by CAN. Where its curve is not monotone near the threshold (all
  components, questions about images), only `exhaustive=True` has to find the same k*; the table
  says where others do.
- 39m: a random LLaVA in which 2,000 to 3,000 gates hold a share each of the answer, so that the
  perplexity rises with each of them that is masked, and k* is about 1,000.

Then the same search over TransformerBridge's hooks, and what the score costs beside the forward and
backward that it cannot do without.

    python benchmarks/critical.py                           # all of it, some 25 minutes
    python benchmarks/critical.py --quick                   # each 25th k of the naive loop
    python benchmarks/critical.py --only score --rounds 15
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above is the one to import from
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from benchmarks.critical_models import Case, planted, shapes_llava  # noqa: E402
from benchmarks.critical_report import missed, report  # noqa: E402
from benchmarks.critical_score import measure_score  # noqa: E402
from benchmarks.critical_search import compare, compare_bridge  # noqa: E402
from benchmarks.measure import CLOCKS  # noqa: E402
from benchmarks.surroundings import surroundings  # noqa: E402

CASES: dict[str, Callable[[], Case]] = {
    "shapes-llava, language model": lambda: shapes_llava(
        n_samples=16, component="language_model", max_k=1200
    ),
    "shapes-llava, all components": lambda: shapes_llava(n_samples=16, component=None, max_k=1200),
    "shapes-llava, told scenes": lambda: shapes_llava(
        n_samples=32, component="language_model", max_k=1200, task="text"
    ),
    "39m, all blocks": lambda: planted(
        "39m", n_planted=3000, blocks=range(8), n_samples=2, max_k=4000
    ),
    "39m, last two blocks": lambda: planted(
        "39m", n_planted=2000, blocks=(6, 7), n_samples=2, max_k=4000
    ),
}
"""The searches that are timed; all neurons of the planted ones are the language model's."""

BRIDGED = ("shapes-llava, language model", "39m, all blocks")
SCORED = {"39m": 4, "shapes-llava": 16}
"""By model, how many samples are scored as one batch."""

PARTS = ("search", "bridge", "score")
QUICK = 25


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = parse(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "run_with_cache: skipped")  # hooks the bridge leaves off
    torch.set_num_threads(options.threads)
    results = measure_all(options)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{report(results)}\n")
    print("\n".join(f"MISSED: {line}" for line in missed(results)) or "All goals are met.")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options that can be measured; any other combination is refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=PARTS, help="may be repeated")
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated")
    parser.add_argument("--quick", action="store_true", help="extrapolate the naive loop's time")
    parser.add_argument("--searches", type=int, default=3, help="times that ours is timed")
    parser.add_argument("--rounds", type=int, default=9, help="of the score")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="cpu needs one thread")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("critical.json"))
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock cpu adds up all threads' time: use --clock wall with more than one")
    if options.rounds < 2 or options.searches < 1:
        parser.error("--rounds must be at least 2, for quartiles, and --searches at least 1")
    return options


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is reported, part by part."""
    parts = options.only or PARTS
    results: dict[str, Any] = {
        **surroundings(),
        "clock": options.clock,
        "searches": {},
        "bridges": {},
        "scores": {},
    }
    names = options.case or list(CASES)
    how = {"rounds": options.searches, "clock": options.clock}
    for name in names if {"search", "bridge"} & set(parts) else ():
        _say(name)
        case = CASES[name]()
        if "search" in parts:
            every = QUICK if options.quick else None
            results["searches"][name] = compare(case, **how, every=every)
        if "bridge" in parts and name in BRIDGED:
            results["bridges"][name] = compare_bridge(case, **how)
    for name, n_samples in SCORED.items() if "score" in parts else ():
        _say(f"score of {name}")
        results["scores"][name] = measure_score(
            name, n_samples=n_samples, rounds=options.rounds, clock=options.clock
        )
    return results


def _say(what: str) -> None:
    print(f"{what} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""What hooks cost: vlm_lens, TransformerBridge and nnsight against plain Hugging Face.

All contenders run in one process, on the same weights: vlm_lens wraps the very model that plain
Hugging Face runs; TransformerBridge and nnsight change what they wrap and get a copy each. A round
runs every task of every contender once, in random order. A ratio is a contender's time over Hugging
Face's in the same round, and the table shows the median of these ratios. What slows the machine
down for longer than a round slows both sides of a ratio; with one thread and ``--clock cpu`` (the
defaults), the time that other processes take is not counted at all.

A task's time covers setting hooks, running, collecting and removing hooks, not freeing what was
kept. The first two runs of each task are not counted.

    python benchmarks/overhead.py                           # the 39M model, and the bundled one
    python benchmarks/overhead.py --model small --rounds 100 --markdown
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import importlib.util
import json
import os
import platform
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["PIP_NO_INDEX"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script or imported

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

from benchmarks.models import Subject, available, build  # noqa: E402
from vlm_lens import HookedVLM  # noqa: E402

Run = Callable[[], Any]
"""One task: returns logits or tokens, and behind them whatever it keeps."""

Times = dict[str, dict[str, list[float]]]
"""Seconds of every round, by task and contender."""

N_NEW = 32
N_ABLATED = 8
WARM_UPS = 2
INNER = ("hook_attn_scores", "hook_pattern")
HF, VLM_LENS, BRIDGE, NNSIGHT = "Hugging Face", "HookedVLM", "TransformerBridge", "nnsight"
CONTENDERS = (HF, VLM_LENS, BRIDGE, NNSIGHT)
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight")
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True)
class Task:
    """What is timed, and the most that HookedVLM may take of Hugging Face's time for `base`."""

    what: str
    base: str = "forward"
    target: float | None = None


TASKS = {
    "forward": Task("forward, nothing hooked", target=1.02),
    "lm_neurons": Task("forward, keeping the language model's `mlp.hook_post`", target=1.10),
    "all_neurons": Task("forward, keeping every `mlp.hook_post`"),
    "everything": Task("forward, keeping all but attention scores and patterns", target=1.30),
    "generate": Task(
        f"{N_NEW} tokens generated, `mlp.hook_post` ablated", base="generate", target=1.10
    ),
}


@dataclass
class Contender:
    """One way to do the tasks; `cannot` says why a task is not among them."""

    runs: dict[str, Run] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


# Contenders -------------------------------------------------------------------------------------


def ablate(tensor: Tensor, hook: Any) -> Tensor:  # noqa: ARG001
    """The hook of the generation task: a few neurons become zero."""
    tensor[..., :N_ABLATED] = 0
    return tensor


def greedy(n_new: int) -> dict[str, Any]:
    """Options that make Hugging Face generate exactly so many tokens, greedily."""
    return {"max_new_tokens": n_new, "min_new_tokens": n_new, "do_sample": False}


def hugging_face(subject: Subject, *, n_new: int) -> Contender:
    """The model itself: forward, and generation without hooks."""
    model, inputs = subject.hf_model, subject.inputs
    return Contender(
        {
            "forward": lambda: (model(**inputs).logits,),
            "generate": lambda: (model.generate(**inputs, **greedy(n_new)),),
        },
        cannot=dict.fromkeys(("lm_neurons", "all_neurons", "everything"), "keeps no neurons"),
    )


def hooked_vlm(subject: Subject, *, n_new: int) -> Contender:
    """vlm_lens, by the calls that its documentation shows."""
    model, inputs = HookedVLM(subject.hf_model), subject.inputs
    neurons = [name for name in model.hook_dict if name.endswith("mlp.hook_post")]
    n_kept = sum(not name.endswith(INNER) for name in model.hook_dict)

    def generate() -> tuple[Tensor]:
        with model.hooks(fwd_hooks=[("blocks.*.mlp.hook_post", ablate)]):
            return (model.generate(inputs, return_type="tokens", **greedy(n_new)),)

    return Contender(
        {
            "forward": lambda: (model(inputs),),
            "lm_neurons": lambda: model.run_with_cache(
                inputs, names_filter="blocks.*.mlp.hook_post"
            ),
            "all_neurons": lambda: model.run_with_cache(inputs, names_filter=neurons),
            "everything": lambda: model.run_with_cache(inputs),
            "generate": generate,
        },
        notes={"everything": f"{n_kept} hook points"},
    )


def transformer_bridge(subject: Subject, *, n_new: int) -> Contender:
    """TransformerLens' own wrapper, on a copy: it changes the model it wraps (eager attention)."""
    model = build_bridge(copy.deepcopy(subject.hf_model))
    rest = dict(subject.inputs)
    tokens = rest.pop("input_ids")
    neurons = [name for name in model.hook_dict if name.endswith("mlp.hook_post")]
    language = [name for name in neurons if name.startswith("blocks.")]
    options = {"max_new_tokens": n_new, "do_sample": False, "stop_at_eos": False, "verbose": False}
    image = rest["pixel_values"]

    def keep(names: Any) -> Run:
        return lambda: model.run_with_cache(tokens, names_filter=names, **rest)

    def generate() -> tuple[Tensor]:
        with model.hooks(fwd_hooks=[(name, ablate) for name in language]):
            new = model.generate(tokens, pixel_values=image, return_type="tokens", **options)
        return (new,)

    return Contender(
        {
            "forward": lambda: (model(tokens, **rest),),
            "lm_neurons": keep(language),
            "all_neurons": keep(neurons),
            "everything": keep(lambda name: not name.endswith(INNER)),
            "generate": generate,
        },
        notes={"everything": "its own hook points, which are not the same ones"},
    )


def build_bridge(hf_model: Any) -> Any:
    """Wrap a loaded model; the way that never runs pip."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.transformers import helpers

    helpers._ensure_torchvision = lambda: False
    return build_bridge_from_module(
        hf_model, type(hf_model).__name__, hf_config=copy.deepcopy(hf_model.config)
    )


def nnsight(subject: Subject, *, n_new: int) -> Contender:
    """nnsight's traces over raw module paths; it knows no names of its own."""
    if not installed("nnsight"):
        return Contender(cannot=dict.fromkeys(TASKS, "nnsight is not installed"))
    from nnsight import NNsight, save

    model, inputs = NNsight(copy.deepcopy(subject.hf_model)), subject.inputs
    language = [layer.mlp.down_proj for layer in model.model.language_model.layers]
    vision = [layer.mlp.fc2 for layer in model.model.vision_tower.encoder.layers]
    in_order = [*vision, model.model.multi_modal_projector.linear_2, *language]

    def forward() -> tuple[Tensor]:
        with model.trace(**inputs):
            logits = model.output.logits.save()
        return (logits,)

    def keep(modules: Sequence[Any]) -> tuple[Tensor, Any]:
        with model.trace(**inputs):
            kept = save([module.input for module in modules])
            logits = model.output.logits.save()
        return logits, kept

    def everything() -> tuple[Tensor, Any]:
        with model.trace(**inputs) as tracer:
            kept = tracer.cache(device=None)
            logits = model.output.logits.save()
        return logits, kept

    def generate() -> tuple[Tensor]:
        with model.trace(**inputs, **greedy(n_new), fn=model._module.generate) as tracer:
            for _ in tracer.iter[:n_new]:
                for module in language:
                    module.input[..., :N_ABLATED] = 0
            tokens = tracer.result.save()
        return (tokens,)

    return Contender(
        {
            "forward": forward,
            "lm_neurons": lambda: keep(language),
            "all_neurons": lambda: keep(in_order),
            "everything": everything,
            "generate": generate,
        },
        notes={"everything": "the output of every module"},
    )


def build_contenders(subject: Subject, *, n_new: int = N_NEW) -> dict[str, Contender]:
    """All contenders on one model, Hugging Face first."""
    builders = (hugging_face, hooked_vlm, transformer_bridge, nnsight)
    return {
        name: builder(subject, n_new=n_new)
        for name, builder in zip(CONTENDERS, builders, strict=True)
    }


# Measuring --------------------------------------------------------------------------------------


@torch.no_grad()
def check(contenders: dict[str, Contender]) -> dict[str, dict[str, float]]:
    """How far each task's logits are from Hugging Face's at most; 0.0 is bit-identical.

    Runs every forward of every contender once.
    """
    (logits,) = contenders[HF].runs["forward"]()
    return {
        name: {
            task: (run()[0] - logits).abs().max().item()
            for task, run in contender.runs.items()
            if task != "generate"
        }
        for name, contender in contenders.items()
    }


@torch.no_grad()
def same_tokens(contenders: dict[str, Contender]) -> dict[str, bool]:
    """Whether the contenders that ablate generate the same tokens under the same ablation."""
    ours = contenders[VLM_LENS].runs["generate"]()[0]
    return {
        name: torch.equal(contender.runs["generate"]()[0], ours)
        for name, contender in contenders.items()
        if name != HF and "generate" in contender.runs
    }


@torch.no_grad()
def measure(contenders: dict[str, Contender], *, rounds: int, clock: str) -> Times:
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


def summarise(times: Times, contenders: dict[str, Contender]) -> dict[str, dict[str, Any]]:
    """Median time, and median and quartiles of the ratio to Hugging Face, by task and contender."""
    return {
        task: {
            name: _summary(times, task, name)
            | ({"note": contender.notes[task]} if task in contender.notes else {})
            if task in contender.runs
            else {"reason": contender.cannot[task]}
            for name, contender in contenders.items()
        }
        for task in TASKS
    }


def _summary(times: Times, task: str, name: str) -> dict[str, Any]:
    taken, plain = times[task][name], times[TASKS[task].base][HF]
    ratios = [ours / theirs for ours, theirs in zip(taken, plain, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ms": round(1e3 * statistics.median(taken), 3),
        "ratio": round(statistics.median(ratios), 3),
        "quartiles": [round(low, 3), round(high, 3)],
    }


def hook_cost(times: Times, subject: Subject) -> dict[str, float]:
    """Microseconds that `run_with_cache` adds to a forward for each hook point that it keeps."""
    names = list(HookedVLM(subject.hf_model).hook_dict)
    counts = {
        "lm_neurons": sum(name.startswith("blocks.") for name in names if "mlp.hook_post" in name),
        "everything": sum(not name.endswith(INNER) for name in names),
    }
    return {
        task: round(1e6 * statistics.median(_extra(times, task)) / count, 1)
        for task, count in counts.items()
    }


def _extra(times: Times, task: str) -> list[float]:
    plain = times["forward"][HF]
    return [ours - theirs for ours, theirs in zip(times[task][VLM_LENS], plain, strict=True)]


def measure_model(name: str, *, rounds: int, clock: str) -> dict[str, Any]:
    """Everything that is reported of one model."""
    subject = build(name)
    contenders = build_contenders(subject)
    difference, agree = check(contenders), same_tokens(contenders)
    times = measure(contenders, rounds=rounds, clock=clock)
    return {
        "parameters": subject.n_parameters,
        "positions": subject.inputs["input_ids"].shape[1],
        "image_tokens": subject.hf_model.config.image_seq_length,
        "tasks": summarise(times, contenders),
        "logits_differ_by": difference,
        "ablated_tokens_agree": agree,
        "microseconds_per_hook_point": hook_cost(times, subject),
    }


def keep_heap() -> None:
    """Have glibc keep freed memory for the next allocation.

    By default it returns a dropped cache to the system, and whoever runs next, plain Hugging Face
    included, pays for getting every page anew. GPU memory is kept by torch in any case.
    """
    trim_threshold, mmap_threshold = -1, -3
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_threshold, 2**25)


def surroundings(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "rounds": options.rounds,
        "heap": options.heap,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if installed(name)},
    }


def installed(package: str) -> bool:
    """Whether a contender's package is there; nnsight is an extra."""
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def cpu_name() -> str:
    """The processor as Linux names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


# Tables -----------------------------------------------------------------------------------------


def met(task: str, ratio: float) -> str:
    """Whether a ratio of HookedVLM reaches the task's target."""
    target = TASKS[task].target
    return "" if target is None else "yes" if ratio <= target else "NO"


def report(results: dict[str, Any]) -> str:
    """Times, ratios, quartiles and targets, for the terminal."""
    lines = []
    for name, model in results["models"].items():
        lines.append(f"\n{name}: {model['parameters'] / 1e6:.1f}M, {model['positions']} positions")
        for task, row in model["tasks"].items():
            lines.append(f"  {TASKS[task].what}")
            lines += [_report_line(task, who, cell) for who, cell in row.items()]
        exact = all(value == 0 for value in model["logits_differ_by"][VLM_LENS].values())
        lines.append(f"  logits bit-identical to {HF}, idle and read: {'yes' if exact else 'NO'}")
        lines.append(f"  microseconds per hook point: {model['microseconds_per_hook_point']}")
    return "\n".join(lines)


def _report_line(task: str, who: str, cell: dict[str, Any]) -> str:
    if "reason" in cell:
        return f"    {who:18} {'-':>10}         ({cell['reason']})"
    low, high = cell["quartiles"]
    line = f"    {who:18} {cell['ms']:10.2f} ms {cell['ratio']:6.3f}x [{low:.3f}, {high:.3f}]"
    target = TASKS[task].target
    if who != VLM_LENS or target is None:
        return line
    return f"{line}  at most {target:.2f}x: {met(task, cell['ratio'])}"


def readme_table(results: dict[str, Any]) -> str:
    """The tables between ``<!-- overhead -->`` and ``<!-- /overhead -->`` in the README."""
    tables = [_markdown(name, model) for name, model in results["models"].items()]
    packages = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    caption = (
        f"Medians of {results['rounds']} interleaved rounds, {results['clock']} time, "
        f"{results['threads']} thread(s), float32, {results['cpu']}, {results['date']}; {packages}."
    )
    return "\n\n".join([*tables, caption])


def _markdown(name: str, model: dict[str, Any]) -> str:
    title = f"{name} ({model['parameters'] / 1e6:.1f}M, {model['positions']} positions)"
    lines = [
        f"| {title} | {' | '.join(CONTENDERS)} | goal |",
        "| --- |" + " ---: |" * (len(CONTENDERS) + 1),
    ]
    for task, row in model["tasks"].items():
        plain = model["tasks"][TASKS[task].base][HF]["ms"]
        cells = [f"{plain:.1f} ms", *(_ratio(row[who]) for who in CONTENDERS[1:])]
        target = TASKS[task].target
        goal = "" if target is None else f"≤ {target:.2f}x"
        lines.append(f"| {TASKS[task].what} | {' | '.join(cells)} | {goal} |")
    differences = [_difference(model["logits_differ_by"][who]) for who in CONTENDERS[1:]]
    return "\n".join([*lines, f"| logits differ by at most | | {' | '.join(differences)} | 0 |"])


def _ratio(cell: dict[str, Any]) -> str:
    return "-" if "reason" in cell else f"{cell['ratio']:.2f}x"


def _difference(by_task: dict[str, float]) -> str:
    if not by_task:
        return "-"
    largest = max(by_task.values())
    return f"{largest:.0e}" if largest else "0"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=available(), help="may be repeated")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="cpu needs one thread")
    parser.add_argument("--heap", choices=["kept", "returned"], default="kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--markdown", action="store_true", help="print the README's tables too")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads > 1:
        parser.error("--clock cpu adds up all threads' time: use --clock wall with more than one")
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "run_with_cache: skipped")  # hooks the bridge leaves off
    torch.set_num_threads(options.threads)
    if options.heap == "kept":
        keep_heap()
    results = surroundings(options)
    names = options.model or [name for name in available() if name != "small"]
    results["models"] = {
        name: measure_model(name, rounds=options.rounds, clock=options.clock) for name in names
    }
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(report(results))
    if options.markdown:
        print(f"\n<!-- overhead -->\n{readme_table(results)}\n<!-- /overhead -->")


if __name__ == "__main__":
    main()

"""Results as text: for the terminal, and as the README's table with its caption."""

from __future__ import annotations

from typing import Any

from benchmarks.contenders import CONTENDERS, HF, VLM_LENS
from benchmarks.tasks import TASKS

Results = dict[str, dict[str, Any]]
"""By heap setting: what the numbers depend on, and `models`. The first setting is the table's."""

HEAP_MEANS = {
    "kept": "freed memory stays with the process, so that page faults of keeping memory are not "
    "counted",
    "returned": "untouched glibc, so that page faults of keeping memory are counted",
}
CLOCK_MEANS = {"cpu": "CPU time of the process", "wall": "wall time"}
PEERS = (
    'In the row "keeping everything" (attention scores and patterns left out), TransformerBridge '
    "keeps its own set of points, and nnsight module outputs only."
)


# Terminal ---------------------------------------------------------------------------------------


def report(results: Results) -> str:
    """Times, ratios, quartiles and targets of every heap setting and model."""
    lines = []
    for heap, run in results.items():
        lines.append(f"\nHeap {heap}: {HEAP_MEANS[heap]}")
        for name, model in run["models"].items():
            lines.append(f"\n{_title(name, model)}")
            lines += _report_model(model)
    return "\n".join(lines)


def _title(name: str, model: dict[str, Any]) -> str:
    return f"{name} ({model['parameters'] / 1e6:.1f}M, {model['positions']} positions)"


def _report_model(model: dict[str, Any]) -> list[str]:
    lines = []
    for task, row in model["tasks"].items():
        lines.append(f"  {TASKS[task].what}")
        lines += [_report_line(task, who, cell) for who, cell in row.items()]
    exact = all(value == 0 for value in model["logits_differ_by"][VLM_LENS].values())
    return [
        *lines,
        f"  logits bit-identical to {HF}, idle and read: {'yes' if exact else 'NO'}",
        f"  microseconds per hook point: {model['microseconds_per_hook_point']}",
    ]


def _report_line(task: str, who: str, cell: dict[str, Any]) -> str:
    if "reason" in cell:
        return f"    {who:18} {'-':>10}         ({cell['reason']})"
    low, high = cell["quartiles"]
    line = f"    {who:18} {cell['ms']:10.2f} ms {cell['ratio']:6.3f}x [{low:.3f}, {high:.3f}]"
    note = f"  ({cell['note']})" if "note" in cell else ""
    target = TASKS[task].target
    if who != VLM_LENS or target is None:
        return line + note
    return f"{line}  at most {target:.2f}x: {TASKS[task].verdict(cell['ratio'])}{note}"


# README -----------------------------------------------------------------------------------------


def readme_table(results: Results) -> str:
    """The tables between ``<!-- overhead -->`` and ``<!-- /overhead -->``, and their caption."""
    shown = next(iter(results.values()))
    tables = [_markdown(name, model) for name, model in shown["models"].items()]
    return "\n\n".join([*tables, caption(results)])


def _markdown(name: str, model: dict[str, Any]) -> str:
    lines = [
        f"| {_title(name, model)} | {' | '.join(CONTENDERS)} | goal |",
        "| --- |" + " ---: |" * (len(CONTENDERS) + 1),
    ]
    for task, row in model["tasks"].items():
        plain = model["tasks"][TASKS[task].base][HF]["ms"]
        cells = [f"{plain:.1f} ms", *(_ratio(cell) for who, cell in row.items() if who != HF)]
        target = TASKS[task].target
        goal = "" if target is None else f"≤ {target:.2f}x"
        lines.append(f"| {TASKS[task].what} | {' | '.join(cells)} | {goal} |")
    differences = [_difference(model["logits_differ_by"][who]) for who in CONTENDERS if who != HF]
    return "\n".join([*lines, f"| logits differ by at most | | {' | '.join(differences)} | 0 |"])


def _ratio(cell: dict[str, Any]) -> str:
    return "-" if "reason" in cell else f"{cell['ratio']:.2f}x"


def _difference(by_task: dict[str, float]) -> str:
    if not by_task:
        return "-"
    largest = max(by_task.values())
    return f"{largest:.0e}" if largest else "0"


def caption(results: Results) -> str:
    """What was measured, on what, and how; without it the ratios say little."""
    heap, shown = next(iter(results.items()))
    threads = "1 thread" if shown["threads"] == 1 else f"{shown['threads']} threads"
    packages = ", ".join(f"{name} {number}" for name, number in shown["versions"].items())
    return " ".join(
        [
            *(_subject(name, model) for name, model in shown["models"].items()),
            f"Medians of {shown['rounds']} interleaved rounds, {CLOCK_MEANS[shown['clock']]},",
            f"{threads}, {shown['cpu']}, {shown['date']}.",
            f"Heap `{heap}`: {HEAP_MEANS[heap]}{_untouched(results)}.",
            PEERS,
            f"{packages}.",
        ]
    )


def _subject(name: str, model: dict[str, Any]) -> str:
    return (
        f"`{name}`: a LLaVA of {model['parameters'] / 1e6:.1f}M parameters, {model['dtype']}, "
        f"{model['image_tokens']} of its {model['positions']} positions an image."
    )


def _untouched(results: Results) -> str:
    """HookedVLM's ratio for "everything" where the table shows `kept` and `returned` ran too."""
    if results.keys() != HEAP_MEANS.keys():
        return ""
    ratios = [
        f"{_ratio(model['tasks']['everything'][VLM_LENS])} (`{name}`)"
        for name, model in results["returned"]["models"].items()
    ]
    return f"; under untouched glibc, {VLM_LENS}'s ratio for everything is {', '.join(ratios)}"

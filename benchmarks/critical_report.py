"""Results of `critical.py` as the tables that the terminal and the README show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.critical_score import BARE, JOBS, SCORE, TARGET
from benchmarks.critical_search import PLAIN
from benchmarks.report import CLOCK_MEANS

Results = Mapping[str, Any]

MARKS = ("<!-- critical -->", "<!-- /critical -->")
"""What `readme_table` stands between."""

FASTER = 10.0
"""How many times as fast as the naive loop the search has to be where k* is about 1,000."""


def report(results: Results) -> str:
    """All tables, and what they were measured on."""
    parts = [
        search_table(results["searches"]),
        bridge_table(results["bridges"]),
        score_table(results["scores"]),
        caption(results),
    ]
    return "\n\n".join(part for part in parts if part)


def readme_table(results: Results) -> str:
    """The same in short, between `MARKS`: each search as it is by default, and the score's cost.

    Where the default finds another k* than the naive loop, the fastest variant that finds the same
    gets a row as well.
    """
    rows = [row for name, case in results["searches"].items() for row in _short_rows(name, case)]
    heads = ["search", "k*", "one more neuron at a time", "`vlm_lens`", "faster"]
    parts = [_table(heads, rows), score_table(results["scores"]), caption(results)]
    return "\n\n".join(parts)


def _short_rows(name: str, case: Mapping[str, Any]) -> list[list[str]]:
    naive, ours = case["naive"], case["ours"]
    shown = [PLAIN]
    if ours[PLAIN]["k"] != naive["k"]:
        same = [variant for variant in ours if ours[variant]["k"] == naive["k"]]
        shown += sorted(same, key=lambda variant: ours[variant]["seconds"])[:1]
    return [
        [
            name if variant == PLAIN else f"{name}, `{variant}`",
            _k(naive["k"], extrapolated=naive["extrapolated"]),
            f"{naive['seconds']:.0f} s",
            _seconds(ours[variant]),
            _faster(naive, ours[variant]),
        ]
        for variant in shown
    ]


def _faster(naive: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """How many times as fast; no number for another result."""
    if ours["k"] != naive["k"]:
        return "?" if naive["extrapolated"] else f"k* = {_k(ours['k'])}"
    ratio = naive["seconds"] / ours["seconds"]
    about = "about " if naive["extrapolated"] else ""
    return f"{about}{ratio:.0f}x" if ratio >= 10 else f"{about}{ratio:.1f}x"


# Searches ---------------------------------------------------------------------------------------


def search_table(searches: Mapping[str, Any]) -> str:
    """For each case a row for the naive loop, and one for each variant of ours."""
    if not searches:
        return ""
    rows = [row for name, case in searches.items() for row in _search_rows(name, case)]
    return _table(["search", "k*", "onset", "k measured", "time", "faster"], rows)


def _search_rows(name: str, case: Mapping[str, Any]) -> list[list[str]]:
    naive = case["naive"]
    about = "about " if naive["extrapolated"] else ""
    rows = [
        [
            f"**{name}**: one more neuron at a time",
            _k(naive["k"], extrapolated=naive["extrapolated"]),
            _k(naive["onset"], extrapolated=naive["extrapolated"]),
            str(naive["measurements"]),
            f"{about}{naive['seconds']:.1f} s",
            "1x",
        ]
    ]
    for variant, entry in case["ours"].items():
        same = entry["k"] == naive["k"]
        rows.append(
            [
                f"`{variant}`",
                _k(entry["k"]),
                _k(entry["onset"]),
                str(entry["measurements"]),
                _seconds(entry),
                _faster(naive, entry) if same or naive["extrapolated"] else "another k*",
            ]
        )
    return rows


def _k(k: int | None, *, extrapolated: bool = False) -> str:
    return ("?" if extrapolated else "none") if k is None else f"{k:,}"


def missed(results: Results) -> list[str]:
    """Which goals were missed, in words; empty if none was."""
    lines = []
    for name, case in results["searches"].items():
        naive, ours = case["naive"], case["ours"][PLAIN]
        if naive["k"] != ours["k"]:
            lines.append(f"{name}: k* is {naive['k']}, but {PLAIN} says {ours['k']}")
        faster = naive["seconds"] / ours["seconds"]
        if (naive["k"] or 0) >= 900 and faster < FASTER:
            lines.append(f"{name}: only {faster:.1f}x as fast as the naive loop")
    for name, bridge in results["bridges"].items():
        if len({entry["k"] for entry in bridge["over"].values()}) > 1:
            lines.append(f"{name}: k* differs over TransformerBridge")
    for name, model in results["scores"].items():
        if (ratio := model["jobs"][SCORE]["ratio"]) > TARGET:
            lines.append(f"{name}: scoring takes {ratio:.2f}x of a forward and backward")
    return lines


# Bridge -----------------------------------------------------------------------------------------


def bridge_table(bridges: Mapping[str, Any]) -> str:
    """The same search over both kinds of hooks."""
    if not bridges:
        return ""
    rows = [
        [f"{name}, over {over}", _k(entry["k"]), str(entry["measurements"]), _seconds(entry)]
        for name, bridge in bridges.items()
        for over, entry in bridge["over"].items()
    ]
    return _table(["search, without generation", "k*", "k measured", "time"], rows)


def _seconds(entry: Mapping[str, Any]) -> str:
    return f"{entry['seconds']:.1f} s"


# Score ------------------------------------------------------------------------------------------


def score_table(scores: Mapping[str, Any]) -> str:
    """What scoring costs, a column for each model."""
    if not scores:
        return ""
    heads = [f"{name} ({model['samples']} samples)" for name, model in scores.items()]
    rows = [
        [what, *(_score_cell(job, model["jobs"]) for model in scores.values()), _goal(job)]
        for job, what in JOBS.items()
    ]
    memory = [_memory(model["jobs"]) for model in scores.values()]
    if all(memory):
        rows.append(["peak of memory, scored over bare", *memory, ""])
    return _table(["score", *heads, "goal"], rows)


def _score_cell(job: str, jobs: Mapping[str, Any]) -> str:
    return f"{jobs[job]['ms']:.0f} ms" if job == BARE else f"{jobs[job]['ratio']:.2f}x"


def _goal(job: str) -> str:
    return f"≤ {TARGET:.2f}x" if job == SCORE else ""


def _memory(jobs: Mapping[str, Any]) -> str:
    bare, scored = jobs[BARE]["peak_mib"], jobs[SCORE]["peak_mib"]
    return "" if bare is None or scored is None else f"{scored:.0f} / {bare:.0f} MiB"


# Both -------------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def caption(results: Results) -> str:
    """What was measured, on what, and how."""
    threads = "1 thread" if results["threads"] == 1 else f"{results['threads']} threads"
    packages = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    searches = results["searches"].items()
    cases = [f"{name}: {_case(case)}." for name, case in searches]
    skipped = any(case["naive"]["extrapolated"] for _, case in searches)
    return " ".join(
        [
            *cases,
            *(["The naive loop's times are extrapolated from some of its k."] if skipped else []),
            f"Medians of {CLOCK_MEANS[results['clock']]} where something ran more than once,",
            f"{threads}, {results['cpu']}, {results['date']}.",
            f"{packages}.",
        ]
    )


def _case(case: Mapping[str, Any]) -> str:
    rises = "rises" if case["naive"]["rises_at_every_k"] else "does not rise"
    return f"{case['what']}, {case['samples']} samples; their perplexity {rises} with every k"

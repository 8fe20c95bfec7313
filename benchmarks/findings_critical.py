"""Critical neurons: how many have to be masked until the model collapses, and the controls.

Each table is what one call of `vlm_lens.analyses.critical_tables` returns, on questions about
images; the first one has CAN and PCICN on each task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.findings_tables import Row, Tables, plain, say
from vlm_lens import HookedVLM, Sample, load_samples
from vlm_lens.analyses import can, critical_tables, pcicn
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.masking import similarity
from vlm_lens.results.scores import Scores

N_SAMPLES = 48
MAX_K = 2000
OPTIONS: dict[str, Any] = {"batch_size": 24, "rows": 48, "max_k": MAX_K}
SETTINGS = {"n_samples": N_SAMPLES, **OPTIONS}
PARTS = ("language_model", "projector", "vision_encoder")


def tables(model: HookedVLM) -> Tables:
    """All tables by title."""
    samples = load_samples("shapes-llava", task="image", n=N_SAMPLES)
    scores = _score(model, samples)
    made: dict[str, Callable[..., Comparison]] = {
        "by component": critical_tables.by_component,
        "by matrix": critical_tables.by_matrix,
        "against other rankings": critical_tables.against_baselines,
        "against artefacts": critical_tables.against_artefacts,
    }
    say("critical neurons: by task")
    found = {"by task": by_task(model)}
    for title, make in made.items():
        say(f"critical neurons: {title}")
        found[title] = _rows(make(model, samples, scores, metrics=(similarity(),), **OPTIONS))
    return found


def by_task(model: HookedVLM) -> list[Row]:
    """CAN and PCICN on each task of the bundled world."""
    rows = []
    for task in ("image", "caption", "text"):
        samples = load_samples("shapes-llava", task=task, n=N_SAMPLES)
        found = can.find_critical(model, samples, _score(model, samples), **OPTIONS)
        rows.append({"method": "CAN", "samples": task, **_told(found)})
    for task in ("image", "text"):
        [sample] = load_samples("shapes-llava", task=task, n=1)
        entries = pcicn.score(model, sample)
        found = pcicn.find_critical(model, sample, entries, rows=OPTIONS["rows"])
        rows.append({"method": "PCICN", "samples": f"one of {task}", **_told(found)})
    return rows


def _score(model: HookedVLM, samples: Sequence[Sample]) -> Scores:
    return can.score(model, samples, batch_size=OPTIONS["batch_size"])


def _told(found: Any) -> Row:
    counts = found.neurons.count_by("component")
    return {
        "degradation": found.stages.onset,
        "k*": found.k,
        "ranked": len(found.ranking),
        **{part.replace("_", " "): counts.get(part, 0) for part in PARTS},
        "monotone": "yes" if found.is_monotone else "no",
    }


def _rows(comparison: Comparison) -> list[Row]:
    shown = ["search", "degradation", "k*", "ranked", "monotone"]
    table = comparison.table()
    measured = ("shared at", "perplexity_ratio at", "similarity at")
    at_k = [name for name in table if name.startswith(measured)]
    rows = plain(table[[*shown, *at_k]])
    return [{**row, "monotone": "yes" if row["monotone"] else "no"} for row in rows]

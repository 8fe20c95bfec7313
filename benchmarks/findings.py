"""What the analyses find on the bundled model, as the tables that the README shows.

Run with ``make findings``. It takes minutes, prints Markdown and writes ``findings.json`` beside
this file, which the tests hold the README to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vlm_lens import HookedVLM, Sample, load_samples
from vlm_lens.analyses import can, critical_tables, pcicn
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.analyses.scores import NeuronScores
from vlm_lens.masking import similarity
from vlm_lens.versions import versions

STORED = Path(__file__).with_name("findings.json")
N_SAMPLES = 48
MAX_K = 2000
OPTIONS: dict[str, Any] = {"batch_size": 24, "rows": 48, "max_k": MAX_K}
TASKS = ("image", "caption", "text")
PARTS = ("language_model", "projector", "vision_encoder")


def by_task(model: HookedVLM) -> list[dict[str, Any]]:
    """CAN and PCICN on each task of the bundled world."""
    rows = []
    for task in TASKS:
        samples = load_samples("shapes-llava", task=task, n=N_SAMPLES)
        found = can.find_critical(model, samples, _score(model, samples), **OPTIONS)
        rows.append({"method": "CAN", "samples": task, **_told(found)})
    for task in ("image", "text"):
        [sample] = load_samples("shapes-llava", task=task, n=1)
        entries = pcicn.score(model, sample)
        found = pcicn.find_critical(model, sample, entries, rows=OPTIONS["rows"])
        rows.append({"method": "PCICN", "samples": f"one of {task}", **_told(found)})
    return rows


def _score(model: HookedVLM, samples: Sequence[Sample]) -> NeuronScores:
    return can.score(model, samples, batch_size=OPTIONS["batch_size"])


def _told(found: Any) -> dict[str, Any]:
    counts = found.neurons.count_by("component")
    return {
        "degradation": found.stages.onset,
        "k*": found.k,
        "ranked": len(found.ranking),
        **{part.replace("_", " "): counts.get(part, 0) for part in PARTS},
        "monotone": "yes" if found.is_monotone else "no",
    }


def tables(model: HookedVLM) -> dict[str, list[dict[str, Any]]]:
    """All tables by title."""
    samples = load_samples("shapes-llava", task="image", n=N_SAMPLES)
    scores = _score(model, samples)
    made: dict[str, Callable[..., Comparison]] = {
        "by component": critical_tables.by_component,
        "by matrix": critical_tables.by_matrix,
        "against other rankings": critical_tables.against_baselines,
        "against artefacts": critical_tables.against_artefacts,
    }
    found = {"by task": by_task(model)}
    for title, make in made.items():
        found[title] = _rows(make(model, samples, scores, metrics=(similarity(),), **OPTIONS))
    return found


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    shown = ["search", "degradation", "k*", "ranked", "monotone"]
    table = comparison.table()
    at_k = [name for name in table if name.startswith(("perplexity_ratio at", "similarity at"))]
    frame = table[[*shown, *at_k]]
    return json.loads(frame.to_json(orient="records"))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table; "-" where there is nothing."""
    frame = pd.DataFrame(rows)
    lines = [list(frame.columns), ["---", *["---:"] * (len(frame.columns) - 1)]]
    lines += [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.2f}"
    return str(value)


def main() -> None:
    """Measures, prints and stores."""
    torch.set_num_threads(1)
    model = HookedVLM.from_pretrained("shapes-llava")
    found = tables(model)
    STORED.write_text(json.dumps({"versions": versions(), "tables": found}, indent=1) + "\n")
    for title, rows in found.items():
        print(f"\n### {title}\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()

"""What the analyses find on the bundled model, as the tables that the README shows.

Run with ``make findings``. It takes some twenty minutes on one core, prints Markdown and writes
``findings.json`` beside this file, which the tests hold the README to. The README shows the most
telling tables; the file has all of them.

    python -m benchmarks.findings                         # everything
    python -m benchmarks.findings --only types            # the others stay as they are stored
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from benchmarks import (
    findings_critical,
    findings_explanations,
    findings_modalities,
    findings_types,
)
from benchmarks.findings_tables import Row, markdown, say
from vlm_lens import HookedVLM
from vlm_lens.versions import versions

STORED = Path(__file__).with_name("findings.json")
GROUPS: dict[str, Any] = {
    "critical": findings_critical,
    "modalities": findings_modalities,
    "types": findings_types,
    "explanations": findings_explanations,
}
"""Modules with `SETTINGS` and a function `tables`."""

IN_README = (
    *("critical: by task", "critical: by component", "critical: by matrix"),
    *("critical: against other rankings", "critical: against artefacts"),
    *("modalities: masked", "modalities: by kind of answer", "types: by layer"),
    *("explanations: by layer", "explanations: best"),
)
"""The tables that the README shows, in their order there."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and stores; a group is stored as soon as it is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=GROUPS, help="may be repeated")
    parser.add_argument("--out", type=Path, default=STORED)
    options = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = HookedVLM.from_pretrained("shapes-llava")
    for name in options.only or GROUPS:
        found = measured(name, model)
        store(options.out, {name: found})
        for title, rows in found["tables"].items():
            print(f"\n### {name}: {title}\n\n{markdown(rows)}", flush=True)


def measured(name: str, model: HookedVLM) -> dict[str, Any]:
    """The tables of a group, with what they depend on."""
    start = time.process_time()
    tables = GROUPS[name].tables(model)
    say(f"{name}: done in {(time.process_time() - start) / 60:.1f} minutes of processor time")
    return {"versions": versions(), "settings": GROUPS[name].SETTINGS, "tables": tables}


def store(path: Path, groups: dict[str, Any]) -> None:
    """Writes groups into a file, beside those that it has."""
    known = json.loads(path.read_text()) if path.exists() else {}
    found = {name: (known | groups)[name] for name in GROUPS if name in known | groups}
    path.write_text(json.dumps(found, indent=1) + "\n")


def stored_tables(path: Path = STORED) -> dict[str, list[Row]]:
    """The rows of all tables, by group and title."""
    return {
        f"{name}: {title}": rows
        for name, group in json.loads(path.read_text()).items()
        for title, rows in group["tables"].items()
    }


if __name__ == "__main__":
    main()

"""What the findings on a real language model, alone and behind a tower, have in common."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers.utils import logging as transformers_logging

from benchmarks.findings_tables import Row, markdown, plain, say
from vlm_lens import Neuron
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.versions import versions

Study = TypeVar("Study")

CHANNEL, LAYER = 507, 11
ONE = Neuron(f"blocks.{LAYER}.hook_mlp_out", CHANNEL)
"""What writes SmolLM2-135M's massive activation."""


def compared(comparison: Comparison) -> list[Row]:
    """A row for each search, with what it says where the first one ends."""
    table, k = comparison.table(), comparison.k
    shown = ["search", "degradation", "k*", "ranked", "shared", f"perplexity_ratio at {k}"]
    return plain(table[shown])


def run(
    make: Callable[[], Study],
    tables: Mapping[str, Callable[[Study], list[Row]]],
    *,
    stored: Path,
    settings: dict[str, Any],
    about: str | None,
    arguments: Sequence[str] | None,
) -> None:
    """The command line: measures, prints and stores each table as soon as it is there.

    Args:
        make: Makes what the tables are measured on.
        tables: By title.
        stored: Where they are stored unless ``--out`` says otherwise.
        settings: What they depend on, to be stored too.
        about: What the command does, in its first line.
        arguments: Those of the command line.
    """
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=tables, help="may be repeated")
    parser.add_argument("--out", type=Path, default=stored)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    study = make()
    for title in options.only or tables:
        began = time.perf_counter()
        rows = tables[title](study)
        say(f"{title}: {(time.perf_counter() - began) / 60:.1f} minutes")
        store(options.out, {title: rows}, order=list(tables), settings=settings)
        print(f"\n### {title}\n\n{markdown(rows)}", flush=True)


def store(
    path: Path, tables: dict[str, list[Row]], *, order: Sequence[str], settings: dict[str, Any]
) -> None:
    """Writes tables into a file, beside those that it has."""
    known = (stored_tables(path) if path.exists() else {}) | tables
    ordered = {title: known[title] for title in order if title in known}
    found = {"versions": versions(), "settings": settings, "tables": ordered}
    path.write_text(json.dumps(found, indent=1) + "\n")


def stored_tables(path: Path) -> dict[str, list[Row]]:
    """The rows of all tables, by title."""
    return json.loads(path.read_text())["tables"]

"""``vlm-lens models``: what is supported, part by part."""

from __future__ import annotations

import argparse
import textwrap

from vlm_lens.cli.progress import Steps


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser."""
    what = "list the models that are supported, part by part"
    parser = commands.add_parser("models", help=what, description=what.capitalize())
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace, *, command: str) -> None:  # noqa: ARG001
    """Prints one line for each record, and what the open parts may be."""
    Steps()
    from vlm_lens.architectures import BLOCKS
    from vlm_lens.architectures.table import COLUMNS, OPEN, aligned, support_rows

    print(aligned([COLUMNS, *support_rows()]))
    note = (
        f"{OPEN} or another type with its modules in the same places. Blocks are known of these "
        f"types: {', '.join(BLOCKS)}. What is missing can be added: docs/add_an_architecture.md."
    )
    print("\n" + textwrap.fill(note, width=100))

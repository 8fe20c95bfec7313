"""The further searches of ``--controls``, one table after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lens.cli.folder import RunFolder
from vlm_lens.cli.progress import Steps, bar

if TYPE_CHECKING:
    from vlm_lens.analyses.comparison import Comparison

Table = Callable[..., "Comparison"]


def make_tables(
    folder: RunFolder, tables: Mapping[str, Table], *, shared: set[str], step: Steps
) -> list[Comparison]:
    """Makes tables one after the other, or reads what an earlier run has found.

    Args:
        folder: Where each of them has a folder of its name.
        tables: Each takes where to keep what is done, and whom to tell.
        shared: Those whose first search is the command's own, which is not repeated.
        step: Says what comes next.
    """
    from vlm_lens.analyses.comparison import Comparison

    made = []
    for name, table in tables.items():
        step(f"searching {name.replace('_', ' ')}")
        place: Path = folder.share_checkpoint(name) if name in shared else folder.checkpoint / name
        with bar(name.replace("_", " "), "sets") as shown:
            make = partial(table, checkpoint=place, on_measure=shown.measured)
            made.append(folder.kept(name, kind=Comparison.KIND, load=Comparison.load, make=make))
    return made

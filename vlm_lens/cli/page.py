"""The last step of a command: its page, and what it says on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlm_lens.cli.checks import reading_input
from vlm_lens.cli.folder import REPORT, RunFolder
from vlm_lens.cli.progress import Steps


def publish(folder: RunFolder, html: str, *, said: Sequence[object], step: Steps) -> None:
    """Writes the page, and prints what was found and where the page is.

    Args:
        folder: Where to.
        html: The page.
        said: Lines and tables.
        step: Says what comes next.

    Raises:
        InputError: The page cannot be written.
    """
    from vlm_lens.pages.write import write_report

    with reading_input():
        write_report(html, folder.path / REPORT)
    step("done")
    print(*said, "", folder.path / REPORT, sep="\n")


def noted(notes: Iterable[str]) -> list[str]:
    """Notes as lines."""
    return [f"Note: {note}" for note in notes]

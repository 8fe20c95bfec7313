"""Writing a report: refused before any work starts, or whole."""

from __future__ import annotations

import os
from pathlib import Path

from vlm_lens.whole_file import replace_file


def check_target(path: Path) -> None:
    """Checks that a page can be written at a path.

    Raises:
        ValueError: The name is that of something else than a page.
        OSError: The folder does not exist or cannot be written to, or the path is a folder.
    """
    folder = path.parent
    if not folder.is_dir():
        there_is = "a file" if folder.exists() else "no folder"
        raise NotADirectoryError(f"cannot write {str(path)!r}: there is {there_is} {str(folder)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if path.suffix.lower() not in ("", ".html", ".htm"):
        raise ValueError(
            f"cannot write {str(path)!r}: it will be a page, whose name ends in .html, not in "
            f"{path.suffix}"
        )
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write {str(path)!r}: no permission in {str(folder)!r}")


def write_report(html: str, path: Path) -> None:
    """Writes a page in one step: a reader, or a crash, never meets half of it.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    replace_file(path, html.encode())

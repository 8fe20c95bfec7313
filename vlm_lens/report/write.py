"""Writing a report: refused before any work starts, or whole."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def check_target(path: Path) -> None:
    """Checks that a file can be written at a path.

    Raises:
        OSError: The folder does not exist or cannot be written to, or the path is a folder.
    """
    folder = path.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write {str(path)!r}: there is no folder {str(folder)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"cannot write {str(path)!r}: it is a folder; name a file in it")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"cannot write {str(path)!r}: no permission in {str(folder)!r}")


def write_report(html: str, path: Path) -> None:
    """Writes a page in one step: a reader, or a crash, never meets half of it.

    Raises:
        OSError: The file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(html, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


class DamagedError(ValueError):
    """A file of ours cannot be read; the message says what to delete, and what that loses."""


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in one step: a reader, or a crash, never meets half of it.

    Raises:
        OSError: It cannot be written; what was there before still is. The error names the path.
    """
    with alone_in(path.parent) as is_alone:
        put(path, content, is_alone=is_alone)


@contextmanager
def alone_in(folder: Path) -> Iterator[bool]:
    """Lets others that write into a folder wait until the block ends.

    Yields:
        Whether that is so: some file systems know no locks, and a folder may not be there.
    """
    handle = _opened(folder)
    try:
        yield handle is not None and _locked(handle)
    finally:
        if handle is not None:
            os.close(handle)  # which gives the lock back; so does the end of the process


def put(path: Path, content: bytes, *, is_alone: bool) -> None:
    """Does what `replace_file` does, inside of `alone_in`.

    Args:
        path: Where to.
        content: What.
        is_alone: What `alone_in` said. If nobody else writes, what a killed process has left of
            this file is overwritten; if somebody may, the unfinished file has a name of its own.
    """
    mark = "" if is_alone else f".{uuid.uuid4().hex}"
    temporary = path.with_name(f".{path.name}{mark}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else the name may reach the disk before the content
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:
            raise
        # It names a file that nobody has asked for, or none at all.
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a new folder the name it is to have when the block that fills it has ended.

    Args:
        folder: Where to. If somebody else has made it meanwhile, theirs stays.

    Yields:
        The folder to fill, beside it.

    Example:
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with whole_folder(Path(parent, "model")) as unfinished:
        ...         _ = (unfinished / "config.json").write_text("{}")
        ...     [file.name for file in Path(parent, "model").iterdir()]
        ['config.json']
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(".tmp", f".{folder.name}-", dir=folder.parent))
    try:
        yield unfinished
        if not folder.is_dir():
            os.rename(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk is full, or that no more may be written there."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_unfinished(path: Path) -> bool:
    """Whether a file is one that `replace_file` has not finished.

    Example:
        >>> is_unfinished(Path("out/.run.json.tmp")), is_unfinished(Path("out/run.json"))
        (True, False)
    """
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _opened(folder: Path) -> int | None:
    """A handle of a folder; None where there is none to lock, which writing then complains of."""
    try:
        return os.open(folder, os.O_RDONLY)
    except OSError:
        return None


def _locked(handle: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # network file systems may have no locks of folders
        return False
    return True

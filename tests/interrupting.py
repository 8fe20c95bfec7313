"""Ending a program, or filling the disk, at one file operation after the other."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

_WRITING = ((os, "mkdir"), (builtins, "open"), (os, "fsync"), (os, "replace"))
_DELETING = ((Path, "unlink"),)


class Killed(BaseException):
    """The program is over: nothing that it would still do on the way out is done."""


@contextmanager
def interrupted(
    number: int, *, killed: bool = False, seen: list[str] | None = None
) -> Iterator[list[str]]:
    """Lets one file operation fail, and all behind it: a full disk, or the end of the program.

    Operations are what a file of ours is written by: its folder is made, it is opened, flushed
    (half of what was written is there then) and renamed; and deleting, which a full disk allows.

    Args:
        number: Which one fails, from 0.
        killed: Whether the program is killed there, and raises `Killed`; else the disk is full.
        seen: Gets the name of each operation.

    Yields:
        What has failed; nothing if there were no so many operations.
    """
    done, failed = 0, list[str]()

    def failing(name: str, real: Any) -> Any:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if name == "open" and "w" not in str(args[1:2]):
                return real(*args, **kwargs)
            done += 1
            if seen is not None:
                seen.append(name)
            if done <= number:
                return real(*args, **kwargs)
            if name == "fsync":
                os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
            failed.append(name)
            raise Killed if killed else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return operation

    with ExitStack() as patches:
        for home, name in (*_WRITING, *(_DELETING if killed else ())):
            patched = patch.object(home, name, failing(name, getattr(home, name)))
            patches.enter_context(patched)
        yield failed

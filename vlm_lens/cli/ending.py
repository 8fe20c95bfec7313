"""How a command ends: one line on stderr and an exit code, or a traceback where it is a bug.

| what happened | exit code |
| --- | --- |
| what the user gave does not work, or a file of ours is damaged | 2 |
| this machine does not do it: a full disk, a folder that is gone | 1 |
| Ctrl-C | 130 |
| whoever reads the output has gone (``| head``); nothing is said | 141 |
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vlm_lens.cli.checks import InputError
from vlm_lens.whole_file import DamagedError, is_full

WRONG_INPUT, TROUBLE, INTERRUPTED, UNREAD = 2, 1, 130, 141
"""Exit codes; the last two are what shells report of the signals SIGINT and SIGPIPE."""

_ROOM = "Make room and run the same command"


def well_ended(
    run: Callable[[], int], *, name: str = "vlm-lens", interrupted: str = "interrupted"
) -> int:
    """Runs something to its end, whichever that is.

    Args:
        run: What; returns an exit code.
        name: What it is called.
        interrupted: What it says when Ctrl-C ends it.

    Returns:
        The exit code. Errors that are bugs are raised.
    """
    try:
        try:
            return run()
        finally:
            if sys.stdout is not None:  # as it is where there is none
                sys.stdout.flush()  # else what cannot be written would show after the end
    except BrokenPipeError:
        _drop_output()
        return UNREAD
    except KeyboardInterrupt:
        return _say(f"{name}: {interrupted}", INTERRUPTED)
    except (InputError, DamagedError) as error:
        return _say(f"{name}: error: {_line(error)}", WRONG_INPUT)
    except OSError as error:
        code = _say(f"{name}: error: {trouble(error)}", TROUBLE)
        _drop_output()
        return code


def trouble(error: OSError) -> str:
    """What a machine does not do, in a line that says what to do.

    Example:
        >>> trouble(OSError(28, "No space left on device", "out/types.json"))
        "cannot write 'out/types.json': No space left on device. Make room and run the same command"
    """
    if error.errno is None or error.strerror is None:
        return _line(error)
    does = "write" if is_full(error) else "read or write"
    what = "what is printed" if error.filename is None else repr(os.fspath(error.filename))
    advice = f". {_ROOM}" if is_full(error) else ""
    return f"cannot {does} {what}: {error.strerror}{advice}"


@contextmanager
def warnings_as_notes(name: str) -> Iterator[None]:
    """Warnings are for whoever reads the terminal: a line each, without a place in the code.

    Pillow's warning of large images is left out: they are read, and then made smaller.
    """

    def say(message: Warning | str, *_: object, **__: object) -> None:
        print(f"{name}: note: {_line(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
        warnings.showwarning = say
        yield


def _line(text: object) -> str:
    return " ".join(str(text).split())


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _drop_output() -> None:
    """Lets Python's own last flush go nowhere where it would complain once more."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""The command line: ``vlm-lens demo``.

Progress goes to stderr and the result to stdout. A mistake in the input ends the run with one line
on stderr and exit code 2; anything else that goes wrong is a bug and shows its traceback.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vlm_lens.report.versions import package_version

BUNDLED = "shapes-llava"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0.

    Raises:
        SystemExit: With code 2 if the input is wrong, 0 after ``--help`` and ``--version``.
    """
    arguments = _parser().parse_args(argv)
    with _one_line_errors(f"vlm-lens {arguments.command}"):
        return arguments.run(arguments, sys.argv[1:] if argv is None else argv)


class InputError(Exception):
    """Something that the user gave does not work; the message says what and why."""


@contextmanager
def _one_line_errors(program: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


@contextmanager
def _input() -> Iterator[None]:
    """Marks where the user's input is read: what goes wrong there is the input's fault."""
    from vlm_lens.architectures.base import ArchitectureError

    try:
        yield
    except (OSError, TypeError, ValueError, ArchitectureError) as error:
        raise InputError(" ".join(str(error).split())) from error

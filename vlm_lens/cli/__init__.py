"""The command line: ``vlm-lens demo``, ``can``, ``pcicn``, ``miner`` and so on, a module for each.

Progress goes to stderr and the result to stdout. A mistake in the input ends the run with one line
on stderr and exit code 2, Ctrl-C with one line and exit code 130; anything else that goes wrong is
a bug and shows its traceback.

Libraries are imported where they are needed: ``--help`` and a mistyped path need no torch.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from vlm_lens.cli import can, demo, explain, explore, miner, models, pcicn, types
from vlm_lens.cli.checks import InputError
from vlm_lens.versions import package_version

INTERRUPTED = 130
"""What shells call the exit code of a command that Ctrl-C has ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0, or 2 if the input does not work, or 130 after Ctrl-C.

    Raises:
        SystemExit: With code 2 if the arguments make no sense, 0 after ``--help`` or ``--version``.
    """
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments, command=shlex.join(["vlm-lens", *argv]))
    except InputError as error:
        print(f"vlm-lens {arguments.name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vlm-lens {arguments.name}: {arguments.interrupted}", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlm-lens", description="Look inside vision-language models, down to single neurons."
    )
    version = f"vlm-lens {package_version('vlm-lens')}"
    parser.add_argument("--version", action="version", version=version)
    parser.set_defaults(interrupted="interrupted")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for command in (demo, can, pcicn, miner, types, explain, explore, models):
        command.add(commands)
    return parser

"""The command line: ``vlm-lens demo``, ``can``, ``pcicn``, ``miner`` and so on, a module for each.

Progress goes to stderr and the result to stdout. How a run ends that does not work, is said in one
place, `vlm_lens.cli.ending`.

Libraries are imported where they are needed: ``--help`` and a mistyped path need no torch.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from vlm_lens.cli import can, demo, explain, explore, models, pcicn, study
from vlm_lens.cli.ending import WRONG_INPUT, warnings_as_notes, well_ended
from vlm_lens.versions import package_version


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        The exit code: 0, or what `vlm_lens.cli.ending` says.

    Raises:
        SystemExit: With code 2 if the arguments make no sense, 0 after ``--help`` or ``--version``.
    """
    argv = sys.argv[1:] if argv is None else argv
    return well_ended(lambda: _run(argv))


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    name = f"vlm-lens {arguments.name}"

    def run() -> int:
        with warnings_as_notes(name):
            arguments.run(arguments, command=shlex.join(["vlm-lens", *argv]))
        return 0

    return well_ended(run, name=name, interrupted=arguments.interrupted)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, where others print all their options too."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vlm-lens", description="Look inside vision-language models, down to single neurons."
    )
    version = f"vlm-lens {package_version('vlm-lens')}"
    parser.add_argument("--version", action="version", version=version)
    parser.set_defaults(interrupted="interrupted")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")
    for command in (demo, can, pcicn, explain, explore, models, study):
        command.add(commands)
    return parser

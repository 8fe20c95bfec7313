"""The folder that a command writes into, and that the same command goes on from."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.values import path
from vlm_lens.whole_file import is_unfinished, replace_file

if TYPE_CHECKING:
    from vlm_lens.results import Result

KIND = "run"
"""The kind of result that the command itself is on disk."""

REPORT = "report.html"

_CHECKPOINT = "checkpoint"

_LOST = (
    "what else is in this folder then belongs to no command, delete it too, or name a new folder "
    "with --out"
)
_NOT_ASKED = ("run", "interrupted", "out", "controls")
"""What makes no difference to what is in the folder; controls can be added later."""


def add_out(
    parser: argparse.ArgumentParser, group: argparse._ArgumentGroup, *, default: str
) -> None:
    """Adds the option that names the folder, and what an interrupted command says about it."""
    folder = "folder for the results; the same command goes on from what is there"
    where = f"{folder} (default: %(default)s)"
    group.add_argument("--out", type=path, default=Path(default), metavar="FOLDER", help=where)
    parser.set_defaults(interrupted="interrupted; the same command goes on from what is done")


R = TypeVar("R", bound="Result")


@dataclass(frozen=True)
class RunFolder:
    """A folder of results that belong to one command.

    Attributes:
        path: Where it is.
        command: The command, as it is typed.
        asked: Its options that make a difference to the results.
    """

    path: Path
    command: str
    asked: dict[str, Any]

    @classmethod
    def of(cls, arguments: argparse.Namespace, command: str) -> RunFolder:
        """The folder that arguments name, checked.

        Raises:
            InputError: It holds something else, or cannot be written to.
        """
        given = {name: value for name, value in vars(arguments).items() if name not in _NOT_ASKED}
        folder = cls(arguments.out, command, {**given, "versions": _versions()})
        with reading_input():
            _check_place(folder.path)
            if _holds_something(folder.path):
                folder._check_same(folder.asked)
        return folder

    @property
    def options(self) -> dict[str, Any]:
        """What the command was told, defaults included, as its page lists it."""
        return {name: it for name, it in self.asked.items() if name not in ("name", "versions")}

    @property
    def checkpoint(self) -> Path:
        """Where what is half done is kept."""
        return self.path / _CHECKPOINT

    def claim(self, **inputs: str) -> None:
        """Writes down what the folder is for, or checks that it was for the same.

        Args:
            **inputs: Checksums of what the options name, such as the model's weights.

        Raises:
            InputError: Something of that name has changed, or a checkpoint is damaged.
        """
        from vlm_lens.results import write_result

        fields = {**self.asked, **inputs}
        with reading_input():
            if (self.path / f"{KIND}.json").exists():
                self._check_same(fields)
                self._check_checkpoint()
            else:
                write_result(self.path, kind=KIND, fields={"command": self.command, **fields})

    def release(self) -> None:
        """Gives up the folder, unless there is something in it that could be gone on from."""
        if {file.name for file in self.path.iterdir()} <= {f"{KIND}.json"}:
            shutil.rmtree(self.path)

    def kept(
        self,
        place: str,
        *,
        kind: str,
        load: Callable[[Path], R],
        make: Callable[[], R],
        is_whole: Callable[[R], bool] = lambda _: True,
    ) -> R:
        """A result that is there from an earlier run, or else is made now.

        Args:
            place: In which folder inside; "" for this one.
            kind: What its file is called.
            load: Reads it.
            make: Makes it.
            is_whole: Whether nothing is missing in it that making it again may add.

        Raises:
            InputError, DamagedError: It is there, but cannot be read.
        """
        folder = self.path / place
        file = folder / f"{kind}.json"
        if file.exists() and is_whole(found := self._loaded(file, load)):
            return found
        made = make()
        made.save(folder)
        return made

    def _loaded(self, file: Path, load: Callable[[Path], R]) -> R:
        try:
            with reading_input():
                return load(file.parent)
        except InputError as error:
            again = "the same command makes it again, and other results stay as they are"
            reason = str(error).rstrip(".")
            raise InputError(f"{reason}. To go on, delete {str(file)!r}: {again}") from error

    def derive(self, made: Result, *, kind: str) -> None:
        """Writes what is quickly made of results, whatever is in its place.

        Args:
            made: What is written.
            kind: What its file is called.
        """
        (self.path / f"{kind}.json").unlink(missing_ok=True)
        made.save(self.path)

    def share_checkpoint(self, place: str) -> Path:
        """A folder for the checkpoints of a table, whose first search is that of the command.

        Args:
            place: What the table is called.
        """
        folder = self.checkpoint / place
        source, target = self.checkpoint / "search.json", folder / "00" / "search.json"
        if source.exists() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            replace_file(target, source.read_bytes())
        return folder

    def _check_same(self, fields: Mapping[str, Any]) -> None:
        from vlm_lens.results import read_result

        if not (self.path / f"{KIND}.json").exists():
            raise InputError(
                f"{str(self.path)!r} holds other files: name a new folder with --out, or an empty "
                "one"
            )
        known, _ = read_result(self.path, kind=KIND, loses=_LOST)
        different = [name for name in fields if known.get(name) != fields[name]]
        if different:
            names = ", ".join(name.replace("_", "-") for name in different)
            raise InputError(
                f"{str(self.path)!r} holds the results of another run, which differs in {names}: "
                f"it was made by `{known.get('command')}`. Name another folder with --out"
            )

    def _check_checkpoint(self) -> None:
        """Reads all that is half done, so that damage is told before work starts."""
        from vlm_lens.results import HALF_DONE, read_result

        for file in sorted(self.path.glob(f"**/{_CHECKPOINT}/**/*.json")):
            read_result(file.parent, kind=file.stem, loses=HALF_DONE)


def _holds_something(path: Path) -> bool:
    """Whether a folder has files in it; those that were never finished do not count."""
    return path.exists() and not all(is_unfinished(file) for file in path.iterdir())


def _check_place(path: Path) -> None:
    """Refuses a folder that cannot be made or written to."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"cannot write into {str(path)!r}: it is a file; name a folder")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"cannot write into {str(path)!r}: {str(nearest)!r} is a file")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"cannot write into {str(path)!r}: no permission in {str(nearest)!r}")


def _versions() -> dict[str, str]:
    from vlm_lens.versions import versions

    return versions()

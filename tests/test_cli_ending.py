"""How commands end: one line and a code, whatever happens; a traceback for bugs alone."""

from __future__ import annotations

import argparse
import errno
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

from vlm_lens.cli import _parser, main
from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.ending import warnings_as_notes, well_ended
from vlm_lens.cli.values import finite, named, path
from vlm_lens.whole_file import DamagedError

FULL = OSError(errno.ENOSPC, "No space left on device", "out/types.json")
MAKE_ROOM = (
    "vlm-lens x: error: cannot write 'out/types.json': No space left on device. Make room and run "
    "the same command"
)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("it is\n  wrong"), 2, "vlm-lens x: error: it is wrong"),
        (DamagedError("cannot read it"), 2, "vlm-lens x: error: cannot read it"),
        (FULL, 1, MAKE_ROOM),
        (
            OSError(errno.EDQUOT, "Quota"),
            1,
            "vlm-lens x: error: cannot write what is printed: Quota",
        ),
        (PermissionError(13, "No", "a"), 1, "vlm-lens x: error: cannot read or write 'a': No"),
        (FileExistsError("will not replace it"), 1, "vlm-lens x: error: will not replace it"),
        (KeyboardInterrupt(), 130, "vlm-lens x: stopped"),
    ],
)
def test_what_ends_a_command_is_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    def fails() -> int:
        raise error

    assert well_ended(fails, name="vlm-lens x", interrupted="stopped") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [ValueError("a"), RuntimeError("b"), KeyError("c"), SystemExit(3)]
)
def test_bugs_are_raised(error: BaseException) -> None:
    def fails() -> int:
        raise error

    with pytest.raises(type(error)):
        well_ended(fails)


@pytest.mark.parametrize("error", [FULL, BrokenPipeError(), DamagedError("x")])
def test_what_is_not_the_input_s_passes_where_input_is_read(error: Exception) -> None:
    with pytest.raises(type(error)), reading_input():
        raise error


def test_warnings_are_lines_and_are_as_before_afterwards(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = warnings.showwarning
    with warnings_as_notes("vlm-lens x"):
        warnings.warn("two\nlines", stacklevel=1)
        warnings.warn("Image size (9 pixels) exceeds, could be decompression bomb", stacklevel=1)
    assert capsys.readouterr().err == "vlm-lens x: note: two lines\n"
    assert warnings.showwarning is before


def vlm_lens(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlm_lens", *arguments]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    shared = {"env": buffered, "stderr": subprocess.PIPE, "text": True}
    return subprocess.run(command, check=False, **shared, **options)


def test_output_that_nobody_reads_ends_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    done = vlm_lens("types", "--help", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is full")
def test_output_onto_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = vlm_lens("--help", stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("vlm-lens: error: cannot write what is printed: No space left")
    assert done.stderr.count("\n") == 1


def test_ctrl_c_is_heard_from_the_first_import_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "vlm_lens.cli", Interrupted("vlm_lens.cli"))
    entry = runpy.run_module("vlm_lens", run_name="imported")["main"]
    assert entry() == 130
    assert capsys.readouterr().err == "vlm-lens: interrupted\n"


# Options ------------------------------------------------------------------------------------------


def options(*types: object) -> list[tuple[str, str, int]]:
    """Commands, and their options of some types with how many values they take."""
    [commands] = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return [
        (command, action.option_strings[-1], action.nargs if isinstance(action.nargs, int) else 1)
        for command, parser in commands.choices.items()
        for action in parser._actions
        if action.type in types
    ]


BAD = [(*option, bad) for option in options(finite) for bad in ("nan", "inf", "1e999", "x", "")]
BAD += [(*option, bad) for option in options(named, path) for bad in ("", "a\0b")]


def test_no_option_takes_numbers_that_are_none_and_empty_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(BAD) > 100
    assert options(float, Path) == []
    for command, option, n, bad in BAD:
        with pytest.raises(SystemExit) as stop:
            main([command, option, *[bad] * n])
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        assert err.startswith(f"vlm-lens {command}: error: argument {option}: expected a ")
        assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["can", "pcicn", "miner", "types", "explain"])
def test_help_says_what_a_folder_of_images_is(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert '{"file_name": "cat.png", "text": "what is on the sofa ?", "answer": "a cat"' in said

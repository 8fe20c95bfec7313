"""Whatever is written to disk is there whole, before and after, whatever ends the program."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

import vlm_lens
from tests.interrupting import Killed, interrupted
from vlm_lens import NeuronSet
from vlm_lens.analyses.chat import Chat, _cached
from vlm_lens.pages.write import write_report
from vlm_lens.plots import save
from vlm_lens.plots.html_figure import HtmlFigure
from vlm_lens.whole_file import replace_file

CHAT = Chat("http://localhost:1/v1", "tiny")
WRITERS: dict[str, Callable[[Path, str], object]] = {
    "file": lambda path, text: replace_file(path, text.encode()),
    "page": lambda path, text: write_report(text, path),
    "figure.html": lambda path, text: save(HtmlFigure(text), path),
    "neurons.json": lambda path, text: NeuronSet.from_indices({text: [3]}).save(path),
    "reply.json": lambda path, text: CHAT._remember(path, text, {}),
}


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "full disk"])
@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, locks: bool, killed: bool
) -> None:
    if not locks:
        monkeypatch.setattr("vlm_lens.whole_file.fcntl", None)
    path, write = tmp_path / name, WRITERS[name]
    write(path, "new.one")
    new = path.read_bytes()
    write(path, "old.one")
    old = path.read_bytes()
    for number in range(20):
        with suppress(OSError, Killed), interrupted(number, killed=killed) as failed:
            write(path, "new.one")
        if not failed:
            break
        assert path.read_bytes() in (old, new) or name == "reply.json"  # which has a date in it
        assert name != "reply.json" or _cached(path) in ("old.one", "new.one")
        write(path, "old.one")
        if locks or not killed:
            assert [file.name for file in tmp_path.iterdir()] == [name]
    assert 2 < number < 19


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path: Path, name: str) -> None:
    named = f"No space left on device: '{tmp_path}.*{name}'"
    with pytest.raises(OSError, match=named), interrupted(1):
        WRITERS[name](tmp_path / name, "text")


WRITING = {"write_text", "write_bytes", "dump", "savetxt", "write_html", "write_image", "rename"}
"""What writes files otherwise; pictures and models are saved beside training alone."""


def test_nothing_in_the_package_is_written_in_another_way() -> None:
    root = Path(vlm_lens.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _writes(node):
                found.append(f"{path.relative_to(root)}: {ast.unparse(node)[:60]}")
    assert [one for one in found if not one.startswith("whole_file.py")] == []
    # The unfinished file is opened, and renamed; a folder is renamed.
    assert len(found) == 3


def _writes(call: ast.Call) -> bool:
    called = call.func
    if isinstance(called, ast.Name):
        mode = call.args[1] if len(call.args) > 1 else None
        return called.id == "open" and isinstance(mode, ast.Constant) and "w" in str(mode.value)
    if not isinstance(called, ast.Attribute):
        return False
    of = called.value.id if isinstance(called.value, ast.Name) else ""
    if called.attr in ("copy", "copyfile", "copytree", "move"):
        return of == "shutil"
    if called.attr in ("replace", "save"):
        return of in ("os", "torch", "np")
    return called.attr in WRITING and bool(call.args)  # a data frame renames columns=...

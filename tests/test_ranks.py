"""Several processes end as one does, whoever dies; what streams is read once."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_lens.ranks import in_turn, is_first, read_once, shared

SMALL = {
    "types": ["--n", "12", "--top-samples", "4", "--max-new-tokens", "6", "--batch-size", "2"],
    "miner": ["--n", "5", "--tasks", "image", "text", "--batch-size", "2"],
    "culture": ["--n", "42", "--batch-size", "3", "--seeds", "0"],
}
"""Each study, on few samples, in batches whose last ones do not fill all processes."""


def python(*words: object, n: int = 1) -> subprocess.CompletedProcess[str]:
    """Runs a module or a script with Python, alone or as one of several processes."""
    given = [str(word) for word in words]
    if n > 1:
        several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
        module = ["-m"] if given[0] == "-m" else []
        given = [*several, *module, "--", *given[len(module) :]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *given], capture_output=True, text=True, env=environment, timeout=300
    )


def results_in(folder: Path) -> dict[str, str]:
    """All results of a folder as they are on disk, but for dates and what is half done."""
    found = {}
    for path in sorted(folder.rglob("*.json")):
        if "checkpoint" not in path.parts and path.name != "run.json":
            text = re.sub(r'"date": "[^"]*"', "", path.read_text())
            found[str(path.relative_to(folder))] = json.dumps(
                json.loads(re.sub(r",\s*}", "}", text))
            )
    return found


@pytest.mark.full
@pytest.mark.parametrize("name", list(SMALL))
def test_two_processes_end_as_one_does(name: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone = python("-m", "vlm_lens", name, *SMALL[name], "--out", one)
    assert alone.returncode == 0, alone.stderr
    both = python("-m", "vlm_lens", name, *SMALL[name], "--out", two, n=2)
    assert both.returncode == 0, both.stderr
    assert results_in(two) == results_in(one)  # checksums of tensors among them
    assert both.stdout.replace(str(two), str(one)) == alone.stdout  # the first one speaks for all


DYING = """
import os, sys
from importlib import import_module
from vlm_lens.cli import main
from vlm_lens.ranks import rank

one_pass = import_module("vlm_lens.passes.one_pass")
taken, n = one_pass._Step.__call__, 0

def dying(step, chunk):
    global n
    n += 1
    if rank() == 1 and n > 5:
        os._exit(3)
    return taken(step, chunk)

one_pass._Step.__call__ = dying
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.full
@pytest.mark.parametrize("n_again", [1, 2])
def test_when_one_dies_the_same_command_goes_on(tmp_path: Path, n_again: int) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    given = ("culture", *SMALL["culture"], "--no-controls")
    assert python("-m", "vlm_lens", *given, "--out", whole).returncode == 0
    died = python(script, *given, "--out", halved, n=2)
    assert died.returncode != 0
    assert not (halved / "selected.json").exists()
    [kept] = (halved / "scores" / "checkpoint").glob("*.json")
    assert json.loads(kept.read_text())["fields"]["n_batches"] >= 8
    again = python("-m", "vlm_lens", *given, "--out", halved, n=n_again)
    assert again.returncode == 0, again.stderr
    assert results_in(halved) == results_in(whole)


TURNS = """
import sys
from vlm_lens.ranks import in_turn, joined, rank, read_once, shared

def counting():
    for i in range(5):
        with open(f"{sys.argv[1]}/{rank()}", "a") as file:
            file.write("read ")
        yield i

with joined():
    made = list(in_turn(lambda i: (i * i, rank()), read_once(counting())))
    try:
        shared(lambda: 1 / 0)
    except ZeroDivisionError:
        made.append("raised")
    with open(f"{sys.argv[1]}/made {rank()}", "w") as file:
        file.write(repr(made))
"""


@pytest.mark.full
def test_a_stream_is_read_once_and_all_know_everything_in_order(tmp_path: Path) -> None:
    script = tmp_path / "turns.py"
    script.write_text(TURNS)
    ended = python(script, tmp_path, n=2)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "0").read_text() == "read " * 5
    assert not (tmp_path / "1").exists()
    expected = [(i, (i * i, i % 2)) for i in range(5)]
    for rank in (0, 1):
        assert (tmp_path / f"made {rank}").read_text() == repr([*expected, "raised"])


def test_one_process_shares_with_nobody() -> None:
    assert is_first()
    assert shared(lambda: 3) == 3
    assert list(in_turn(str, read_once(iter([1, 2])))) == [(1, "1"), (2, "2")]
    with pytest.raises(ZeroDivisionError):
        shared(lambda: 1 / 0)

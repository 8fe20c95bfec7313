"""The method of docs/add_a_method.md, written from the page into a package of its own, works."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.page import Page, assert_self_contained
from tests.studies.brought import GROUP, describe

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_a_method.md").read_text(encoding="utf-8")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def files_on_the_page() -> dict[str, str]:
    """The files that the page writes, by name."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))


def session_on_the_page() -> tuple[list[str], str]:
    """The command that is typed, and what it says."""
    [shown] = re.findall(r"^```console\n\$ vlm-lens (.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    typed, _, said = shown.partition("\n")
    return typed.split(), said


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's files, as they lie there once they are installed."""
    folder = tmp_path_factory.mktemp("package")
    for name, text in files_on_the_page().items():
        (folder / name).write_text(text, encoding="utf-8")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    describe(folder, project["entry-points"][GROUP], name=project["name"])
    return folder


def python(package: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs Python where the package is installed."""
    path = os.pathsep.join([str(ROOT), str(package)])
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
    )


def test_the_page_writes_a_method_its_tests_and_its_project() -> None:
    assert [*files_on_the_page()] == ["apart.py", "pyproject.toml", "test_apart.py"]


def test_help_knows_the_study(package: Path, tmp_path: Path) -> None:
    ended = python(package, "-m", "vlm_lens", "apart", "--help", cwd=tmp_path)
    assert ended.stderr == ""
    said = " ".join(ended.stdout.split())
    assert "how many neurons each category gets (default: 10)" in said
    assert "--over {text prompt,image}" in said


def test_the_command_says_what_the_page_shows(package: Path, tmp_path: Path) -> None:
    typed, shown = session_on_the_page()
    ended = python(package, "-m", "vlm_lens", *typed, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    checker = doctest.OutputChecker()
    assert checker.check_output(shown, ended.stdout, FLAGS), ended.stdout
    page = Page((tmp_path / "found" / "report.html").read_text(encoding="utf-8"))
    assert_self_contained(page)
    assert "Neurons that tell questions apart (Green and Swets 1966)" in page.text


@pytest.mark.full
def test_the_tests_of_the_page_pass(package: Path) -> None:
    ended = python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package)
    assert ended.returncode == 0, ended.stdout
    assert "3 passed" in ended.stdout


@pytest.mark.full
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("(mean - others)", "(others - mean)"),
        ("square - mean**2", "square"),
        ("sums.sum(0) - sums, n.sum() - n", "sums.sum(0), n.sum()"),
    ],
)
def test_the_tests_of_the_page_notice_a_wrong_formula(
    package: Path, tmp_path: Path, before: str, after: str
) -> None:
    files = files_on_the_page()
    assert before in files["apart.py"]
    (tmp_path / "apart.py").write_text(files["apart.py"].replace(before, after), encoding="utf-8")
    (tmp_path / "test_apart.py").write_text(files["test_apart.py"], encoding="utf-8")
    loops = ("-k", "loops", "-p", "no:cacheprovider")
    ended = python(tmp_path, "-m", "pytest", "-q", *loops, cwd=tmp_path)
    assert ended.returncode == 1, ended.stdout


@pytest.mark.full
def test_the_study_passes_the_standard_tests(package: Path) -> None:
    standard = ("tests/studies", "-m", "not full", "-k", "apart", "-p", "no:cacheprovider")
    ended = python(package, "-m", "pytest", *standard, "-o", "addopts=", cwd=ROOT)
    assert ended.returncode == 0, ended.stdout
    n_passed = re.search(r"(\d+) passed", ended.stdout)
    assert n_passed
    assert int(n_passed[1]) > 10

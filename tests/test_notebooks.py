"""The notebooks run from top to bottom, and what is stored of them is theirs, small and offline."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_core.utils import run_sync
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from notebooks.build import HERE, PLOTLY, SOURCES, badge, execute, notebook

LARGEST = 2_000_000
REAL = {"08_one_neuron": 'NAME = "smollm2-135m"  # or "shapes-llava"'}
"""Notebooks about a real model: what they load first."""
LOADS = re.compile(
    r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(\s*["']?https?:""", re.IGNORECASE
)

sources = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def outputs(made: NotebookNode) -> list[NotebookNode]:
    return [output for cell in made.cells for output in cell.get("outputs", [])]


def stored(source: Path) -> NotebookNode:
    return nbformat.read(source.with_suffix(".ipynb"), as_version=4)


def check_outputs(made: NotebookNode) -> None:
    """No errors, no widgets, no scripts, nothing from the network."""
    assert "widgets" not in made.metadata
    for output in outputs(made):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        data = output.get("data", {})
        assert not [kind for kind in data if "widget" in kind]
        html = data.get("text/html", "")
        assert "<script" not in html
        assert not LOADS.search(html), html[:200]
        assert not LOADS.search(json.dumps(data.get(PLOTLY, {})))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One kernel for all notebooks: most of a notebook's time would go into importing torch."""
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)  # in a thread where a browser's loop runs


@pytest.mark.full
@sources
def test_a_notebook_runs_without_an_error(source: Path, kernel: KernelManager, folder: Path):
    made = notebook(source)
    made.cells.insert(0, new_code_cell("%reset -f"))
    made.cells.append(new_code_cell("print(sys.executable)"))
    execute(made, folder=folder, kernel=kernel)
    check_outputs(made)
    assert outputs(made)[-1].text.strip() == sys.executable
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not list(folder.iterdir())


@sources
def test_what_is_stored_has_the_cells_of_its_source(source: Path):
    made, kept = notebook(source), stored(source)
    shown = [(cell.id, cell.cell_type, cell.source) for cell in kept.cells]
    expected = [(cell.id, cell.cell_type, cell.source) for cell in made.cells]
    assert shown == expected, f"run `python notebooks/build.py {source.stem[:2]}`"


@sources
def test_what_is_stored_is_small_and_loads_nothing(source: Path):
    kept = stored(source)
    nbformat.validate(kept)
    check_outputs(kept)
    assert source.with_suffix(".ipynb").stat().st_size < LARGEST
    figures = [output.data for output in outputs(kept) if PLOTLY in output.get("data", {})]
    assert all("image/png" in data for data in figures)


@sources
def test_a_notebook_opens_in_colab_and_names_a_larger_model(source: Path):
    kept = stored(source)
    first = kept.cells[0].source
    assert first.startswith("# ")
    assert badge(source.stem) in first
    assert badge(source.stem).endswith(f"/notebooks/{source.stem}.ipynb)")
    named = REAL.get(source.stem, 'NAME = "shapes-llava"  # or "llava-hf/llava-1.5-7b-hf"')
    assert named in source.read_text()


@sources
def test_a_notebook_asks_before_it_answers_and_says_what_it_does_not_show(source: Path):
    prose = " ".join(" ".join(cell.source for cell in notebook(source).cells).split())
    assert "> **Predict.**" in prose
    assert re.search(r"what (this|it)( still)? does not show", prose, re.IGNORECASE)


@sources
def test_the_notebooks_that_it_names_exist(source: Path):
    numbers = {path.name[:2] for path in SOURCES}
    named = re.findall(r"[Nn]otebooks? (\d)(?: and (\d))?", source.read_text())
    assert {f"{int(n):02}" for pair in named for n in pair if n} <= numbers


def test_each_source_is_stored_and_each_stored_one_has_a_source():
    assert {path.stem for path in HERE.glob("*.ipynb")} == {path.stem for path in SOURCES}


def test_a_source_without_a_title_is_refused(tmp_path: Path):
    source = tmp_path / "09_untitled.py"
    source.write_text("# %%\n1 + 1\n")
    with pytest.raises(ValueError, match="to begin with a cell '# title'"):
        notebook(source)

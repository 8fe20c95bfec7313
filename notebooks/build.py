"""Makes the notebooks out of their sources: `NN_name.py` becomes `NN_name.ipynb`, executed.

The sources are what people edit and compare. They are plain Python in cells (py:percent), which
jupytext reads; `python notebooks/build.py [NN ...]` runs them on the bundled model and stores small
outputs, with a picture of each figure for readers without plotly's script.
"""

from __future__ import annotations

import os
import sys
import tomllib
from base64 import b64encode
from pathlib import Path

import jupytext
import nbformat
import plotly.graph_objects as go
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from vlm_lens.plots.save import picture

HERE = Path(__file__).parent
SOURCES = sorted(HERE.glob("[0-9][0-9]_*.py"))
PLOTLY = "application/vnd.plotly.v1+json"
_WIDGET = "application/vnd.jupyter.widget-view+json"
SECONDS = 180
"""No cell may take longer; the one that first loads a real model makes its weights floats."""
_LONG = 2000
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # small models are slower on more
    "HF_HUB_OFFLINE": "1",
    "PLOTLY_RENDERER": "plotly_mimetype",  # the data alone, without 4.8 MB of script
}
_INSTALL = """\
# Google Colab has no vlm_lens yet. Anywhere else this cell does nothing.
import sys

if "google.colab" in sys.modules:
    %pip install --quiet git+{repository}"""


def repository() -> str:
    """The address of the repository, from pyproject.toml."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    return project["urls"]["Repository"]


def badge(name: str) -> str:
    """The badge that opens a notebook in Colab."""
    place = repository().removeprefix("https://github.com/")
    page = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({page})"


def notebook(source: Path) -> NotebookNode:
    """A source as a notebook without outputs.

    The first cell gets the badge below its title, and the second one installs vlm_lens in Colab.
    Cells have the same ids each time, so that only what was changed differs.

    Raises:
        ValueError: The source does not begin with a title.
    """
    made = jupytext.read(source, fmt="py:percent")
    first = made.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        raise ValueError(f"expected {source.name} to begin with a cell '# title' of markdown")
    title, _, rest = first.source.partition("\n")
    first.source = f"{title}\n\n{badge(source.stem)}\n{rest}".rstrip()
    made.cells.insert(1, new_code_cell(_INSTALL.format(repository=repository())))
    for number, cell in enumerate(made.cells):
        cell.id = f"{source.stem[:2]}-{number:02}"
    made.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    made.nbformat, made.nbformat_minor = 4, 5
    return made


def execute(
    made: NotebookNode, *, folder: Path, kernel: KernelManager | None = None
) -> NotebookNode:
    """Runs a notebook in a folder, with the interpreter that runs this, and keeps its outputs.

    Widgets are not among them: they live as long as their kernel. Progress bars are left out, and
    of what shows itself as HTML too, that is kept.

    Args:
        made: The notebook, whose outputs are filled in.
        folder: Where it runs.
        kernel: A kernel that is used again and not ended; by default a new one.

    Raises:
        CellExecutionError: A cell raised.
        CellTimeoutError: A cell took too long.
    """
    client = NotebookClient(
        made,
        km=kernel,
        timeout=SECONDS,
        kernel_name="python3",  # jupyter takes the running interpreter for it
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env={**os.environ, **ENVIRONMENT})
    for cell in made.cells:
        for output in cell.get("outputs", []):
            if output.get("data", {}).pop(_WIDGET, None) and "text/html" not in output.data:
                output.data.clear()
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("data", True)]
    return made


def tidy(made: NotebookNode) -> None:
    """Adds a picture to each figure, for sites without plotly's script, and drops long reprs."""
    for cell in made.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                figure = go.Figure({key: data[PLOTLY][key] for key in ("data", "layout")})
                data["image/png"] = b64encode(picture(figure, "png")).decode()
            if "text/html" in data and len(data.get("text/plain", "")) > _LONG:
                data["text/plain"] = "<figure>"


def build(source: Path) -> Path:
    """Converts, executes and stores one notebook."""
    made = execute(notebook(source), folder=HERE)
    tidy(made)
    target = source.with_suffix(".ipynb")
    nbformat.write(made, target)
    return target


def main(chosen: list[str]) -> None:
    """Builds the notebooks whose names begin with one of these, or all."""
    for source in SOURCES:
        if not chosen or source.name.startswith(tuple(chosen)):
            target = build(source)
            print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])

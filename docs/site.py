"""What the site has beside the pages in this folder: notebooks, the gallery, and plotly.

MkDocs calls the functions named ``on_...``. Nothing is fetched from the network, neither when the
site is built nor when it is read.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from html import escape, unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import plotly.io
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from plotly.offline import get_plotlyjs

from vlm_lens import plots

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_BADGE = re.compile(r"\[!\[([^]]*)\]\([^)]*\)\]\(([^)]*)\)")
_FORMULA = re.compile(
    r'<(?:span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</(?:span|div)>', re.DOTALL
)
_PLACE = re.compile(r"<!-- output (\d+) -->")
_OUTPUTS: list[str] = []
PLOTLY = "application/vnd.plotly.v1+json"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the notebooks into the navigation, behind the page about TransformerLens."""
    assert config.nav is not None
    config.nav.insert(2, {"Notebooks": [f"notebooks/{path.stem}.md" for path in NOTEBOOKS]})
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages that are made here."""
    _OUTPUTS.clear()
    made = {f"notebooks/{path.stem}.md": notebook_page(path) for path in NOTEBOOKS}
    made["gallery.md"] = gallery_page()
    made["reference/plots.md"] = reference_of_plots()
    made["explorer.html"] = explorer_page()
    made["assets/plotly.min.js"] = get_plotlyjs()
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Sets formulas, and puts outputs where Markdown has left their places."""
    html = _FORMULA.sub(_set, html)
    return _PLACE.sub(lambda found: _OUTPUTS[int(found[1])], html)


def _set(found: re.Match[str]) -> str:
    """A formula as MathML, which browsers draw without a script."""
    opening, formula = found.groups()
    return convert(unescape(formula), display="block" if opening == "[" else "inline")


def placed(html: str) -> str:
    """A place for some HTML that Markdown must not touch: a script has to stay as it is."""
    _OUTPUTS.append(f'<div class="output">\n{html}\n</div>')
    return f"<!-- output {len(_OUTPUTS) - 1} -->"


# Notebooks ----------------------------------------------------------------------------------------


def notebook_page(path: Path) -> str:
    """A notebook as Markdown, with the outputs that are stored in it.

    The cell that installs the package in Colab is left out, and its badge, which is a picture from
    elsewhere, becomes a link.
    """
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if "google.colab" not in cell["source"]]
    text = "\n\n".join(part for cell in cells for part in _parts_of(cell))
    return _BADGE.sub(r"[\1](\2)", text)


def _parts_of(cell: Mapping[str, Any]) -> Iterator[str]:
    if cell["cell_type"] == "markdown":
        yield cell["source"]
        return
    if cell["source"].strip():
        yield f"```python\n{cell['source']}\n```"
    for output in cell["outputs"]:
        yield placed(_shown(output))


def _shown(output: Mapping[str, Any]) -> str:
    """An output in the richest form that a page can show."""
    if output["output_type"] == "stream":
        return _as_text(output["text"]) if output["name"] == "stdout" else ""
    if output["output_type"] == "error":
        return _as_text(f"{output['ename']}: {output['evalue']}")
    data = output["data"]
    if PLOTLY in data:
        return figure(data[PLOTLY])
    if "text/html" in data:
        return data["text/html"]
    if "image/png" in data:
        source = f"data:image/png;base64,{data['image/png']}"
        return f'<img alt="Output of the cell above" src="{source}">'
    return _as_text(data.get("text/plain", ""))


def _as_text(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def figure(content: Mapping[str, Any]) -> str:
    """A plotly figure, which ``assets/figures.js`` draws."""
    plain = {name: content.get(name, default) for name, default in (("data", []), ("layout", {}))}
    text = json.dumps(plain).replace("</", "<\\/")
    return f'<div class="figure"><script type="application/json">{text}</script></div>'


# The explorer -------------------------------------------------------------------------------------


def explorer_page() -> str:
    """The page that the README has a picture of."""
    from assets.explorer import write_page

    with TemporaryDirectory() as folder:
        path = Path(folder) / "explorer.html"
        write_page(path)
        return path.read_text(encoding="utf-8")


# Figures --------------------------------------------------------------------------------------


def gallery_page() -> str:
    """Every figure with the call that draws it."""
    from docs import gallery

    parts = ["# Gallery", gallery.__doc__ or ""]
    for example in gallery.examples():
        parts += [f"## {example.title}", f"```python\n{example.code}\n```", _drawn(example.figure)]
    return "\n\n".join(parts)


def _drawn(drawing: Any) -> str:
    if hasattr(drawing, "to_plotly_json"):
        return placed(figure(json.loads(plotly.io.to_json(drawing))))
    return placed(drawing._repr_html_())


def reference_of_plots() -> str:
    """The public names of `vlm_lens.plots`, each where it is written."""
    places = [f"{getattr(plots, name).__module__}.{name}" for name in plots.__all__]
    intro = "# Figures\n\n[The gallery](../gallery.md) shows them."
    return "\n\n".join([intro, *(f"::: {place}" for place in places)])

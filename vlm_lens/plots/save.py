"""Figures as files: pages that need no network, and pictures."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.plots import style
from vlm_lens.plots.html_figure import HtmlFigure, ScriptFigure
from vlm_lens.plots.page import DRAW, as_json, library, policy
from vlm_lens.whole_file import replace_file

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PICTURES = (".png", ".svg")
_SCALE = 2
"""Pictures have so many pixels for each one of the page."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="{scheme}">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>body {{ margin: 8px; font-family: {font} }}</style></head>
<body>{body}</body></html>
"""
_PLOTLY = (
    '<div class="figure"></div><script type="application/json">{data}</script>'
    "<script>{library}</script><script>{draw}</script>"
)
_GET = (
    "pictures are drawn by kaleido in a Chromium or Chrome: pip install 'vlm-lens[images]', and "
    "install a browser where there is none (on Debian: apt install chromium; or set BROWSER_PATH). "
    'A page needs neither: save(figure, "figure.html").'
)


def save(figure: go.Figure | HtmlFigure, path: str | os.PathLike[str]) -> None:
    """Writes a figure into a file, in one step: a crash leaves none, or the one before.

    Args:
        figure: A figure of `vlm_lens.plots`, or any of plotly's.
        path: Where to; its end says what is written. ``.html`` is a page with everything in it,
            which asks for nothing and can run no other script: 5 MB for plotly's figures. ``.png``
            (twice as large as on the page) and ``.svg`` are drawn by kaleido, which needs a
            Chromium.

    Raises:
        ValueError: The file's name ends otherwise, or a figure that is HTML is to be a picture.
        TypeError: It is no figure.
        ImportError: kaleido is not installed.
        RuntimeError: There is no browser that draws the picture.
        OSError: The file cannot be written.

    Example:
        >>> import numpy as np
        >>> from tempfile import mkdtemp
        >>> from vlm_lens.plots import neuron_over_tokens
        >>> path = Path(mkdtemp()) / "tokens.html"
        >>> save(neuron_over_tokens(["<image>", " red"], np.array([0.5, 1.0])), path)
        >>> "&lt;image&gt;" in path.read_text()
        True
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (".html", *_PICTURES):
        raise ValueError(
            f"expected a file name that ends in .html, .png or .svg, got {str(path)!r}"
        )
    if not target.parent.is_dir():
        raise NotADirectoryError(f"cannot write {str(path)!r}: there is no folder for it")
    if isinstance(figure, HtmlFigure):
        content = _html_page(figure, suffix).encode("utf-8", "replace")
    elif not hasattr(figure, "to_plotly_json"):
        raise TypeError(f"expected a figure, got {type(figure).__name__}")
    elif suffix == ".html":
        content = _plotly_page(figure).encode("utf-8", "replace")
    else:
        kind = suffix.removeprefix(".")
        content = picture(figure, kind, scale=_SCALE if kind == "png" else 1)
    replace_file(target, content)


def _html_page(figure: HtmlFigure, suffix: str) -> str:
    if suffix != ".html":
        raise ValueError(
            f"{type(figure).__name__} is HTML, which no {suffix} can hold: save it as .html, and "
            "take a picture of that in a browser"
        )
    if isinstance(figure, ScriptFigure):
        return figure.html
    return _page("vlm_lens", figure.html, [], scheme="light dark")


def _plotly_page(figure: go.Figure) -> str:
    source = library()
    body = _PLOTLY.format(data=as_json(figure), library=source, draw=DRAW)
    layout: Any = figure.layout
    title = (layout.title.text or "vlm_lens").split("<br>")[0]
    return _page(title, body, [source, DRAW], scheme="light", is_escaped=True)


def _page(
    title: str, body: str, scripts: list[str], *, scheme: str, is_escaped: bool = False
) -> str:
    return _PAGE.format(
        scheme=scheme,
        policy=policy(*scripts),
        title=title if is_escaped else escape(title),
        font=style.FONT,
        body=body,
    )


def picture(figure: go.Figure, kind: str, *, scale: int = 1) -> bytes:
    """A figure as a picture.

    Args:
        figure: One of plotly's.
        kind: "png" or "svg".
        scale: Pixels for each one of the page.

    Raises:
        ImportError: kaleido is not installed.
        RuntimeError: There is no browser that draws the picture.
    """
    try:
        import kaleido  # noqa: F401 # plotly's own message names a command that downloads Chrome
        from choreographer.errors import BrowserFailedError, ChromeNotFoundError
    except ImportError as error:
        raise ImportError(f"kaleido is not installed: {_GET}") from error
    try:
        return _lowered(figure).to_image(format=kind, scale=scale)
    except (RuntimeError, ChromeNotFoundError, BrowserFailedError) as error:
        raise RuntimeError(f"no browser draws the picture: {_GET}") from error


def _lowered(figure: go.Figure) -> go.Figure:
    """The figure with room above a title of several lines.

    Pages keep the padding of such a title, pictures lose it, and with it the tops of its letters.
    """
    layout: Any = figure.layout
    title = layout.title
    if "<br>" not in (title.text or "") or not (layout.height and title.pad.t):
        return figure
    return type(figure)(figure).update_layout(title_y=1 - title.pad.t / layout.height)

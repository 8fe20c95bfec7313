"""The page's script and style.

The script is one ES module, and its parts are files that follow each other in it: notebooks and
stand-alone pages both take a module as one text, with nothing to import.
"""

from __future__ import annotations

from pathlib import Path

_STATIC = Path(__file__).parent / "static"
_PAGE = ("elements.js", "strip.js", "spread.js", "scene.js", "panels.js", "explorer.js")


def _joined(*names: str) -> str:
    return "\n".join((_STATIC / name).read_text(encoding="utf-8") for name in names)


WIDGET = _joined(*_PAGE, "kernel.js")
"""The module whose questions a kernel answers; it has the default export that anywidget expects."""

STANDALONE = _joined(*_PAGE, "page.js")
"""The module that answers from data in its page."""

STYLE = _joined("explorer.css")

"""Plotly figures on a page that asks for nothing: the library is in the page, once.

The page's content security policy names the checksums of the two scripts that it has. No other
script runs in it, whatever text from models and data may say.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    import plotly.graph_objects as go

DRAW = """
for (const figure of document.querySelectorAll(".figure")) {
  const { data, layout } = JSON.parse(figure.nextElementSibling.textContent);
  Plotly.newPlot(figure, data, layout, { showSendToCloud: false, displaylogo: false });
}
"""
"""Draws all figures of a page; plotly's button that would upload them is off."""

_NO_SCRIPT = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'"


def library() -> str:
    """The source of plotly.js."""
    from plotly.offline import get_plotlyjs  # a fifth of a second

    return get_plotlyjs()


def policy(*scripts: str) -> str:
    """A content security policy for a page with these scripts, and without requests.

    Example:
        >>> policy("").partition("; script-src ")[2]
        "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
    """
    if not scripts:
        return _NO_SCRIPT
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    sources = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return f"{_NO_SCRIPT}; script-src {sources}"


def as_json(figure: go.Figure) -> Markup:
    """A figure to be put between script tags: no text in it can end them.

    Example:
        >>> import plotly.graph_objects as go
        >>> "<" in as_json(go.Figure(layout={"title": "</script><script>"}))
        False
    """
    from plotly.io import to_json

    return Markup(str(to_json(figure, engine="json")).replace("<", "\\u003c"))

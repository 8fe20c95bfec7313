"""What figures that are HTML have in common: notebooks show them, and any page can hold them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, repr=False)
class HtmlFigure:
    """A figure as HTML.

    Attributes:
        html: A fragment without scripts, style sheets or links to anything else.

    Example:
        >>> HtmlFigure("<b>seven</b>")._repr_html_()
        '<b>seven</b>'
        >>> HtmlFigure("<b>seven</b>")
        HtmlFigure(12 characters of HTML)
    """

    html: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.html):,} characters of HTML)"

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True, repr=False)
class ScriptFigure(HtmlFigure):
    """A figure that needs a script: a page of its own, which notebooks show in a frame.

    The page asks for nothing: its content security policy forbids requests, and all scripts but
    its own.

    Attributes:
        html: The whole page, scripts included.
        height: How high the frame is at first, in pixels; the page then makes it fit.

    Example:
        >>> figure = ScriptFigure("<!doctype html><p>seven</p>", height=40)
        >>> figure._repr_html_().partition("srcdoc=")[2]
        '"&lt;!doctype html&gt;&lt;p&gt;seven&lt;/p&gt;"></iframe>'
    """

    height: int = 400

    def _repr_html_(self) -> str:
        look = f"width:100%;height:{self.height}px;border:0;background:white"
        return f'<iframe title="figure" style="{look}" srcdoc="{escape(self.html)}"></iframe>'

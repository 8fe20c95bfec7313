"""CircuitsVis' drawings as pages that ask for nothing and show every token as it is.

As they come they import from a CDN where there is a network (and ask a search engine whether there
is one), put tokens into the page as HTML, where ``<image>`` and ``<bos>`` disappear, and break off
at a token that holds the end of a script. Each page carries CircuitsVis' script, 1.3 MB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Protocol, runtime_checkable

from vlm_lens.plots import style
from vlm_lens.plots.html_figure import ScriptFigure
from vlm_lens.plots.page import policy

POSITIVE = f"rgb{style.POSITIVE}"
NEGATIVE = f"rgb{style.NEGATIVE}"

_LESS_THAN = "\ue000"
"""Stands for "<" until the script is written, where it is escaped: a script cannot end there."""
_JOINER = "\u2060"
"""Has no width. Behind a "<" or "&" it makes both plain text, in HTML and anywhere else."""
_SCRIPT = re.compile(r"(.*?)<script[^>]*>(.*)</script>\s*$", re.DOTALL)
_COLOURS = re.compile(r'(\w+)="red",(\w+)="blue"\)')
"""The colours of what takes none: blue is positive there, and negative everywhere else here."""
_FIT = """
new ResizeObserver(() => {
  if (window.frameElement) {
    window.frameElement.style.height = document.documentElement.offsetHeight + 12 + "px";
  }
}).observe(document.body);
"""
_NO_WEBGL = """
const getContext = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  return kind.includes("webgl") ? null : getContext.call(this, kind, ...rest);
};
window.OffscreenCanvas = undefined;
console.log = console.warn = () => {};
"""
"""Its library for tensors would take one of the few WebGL contexts of a page, to look up a row. It
does without, and would say so in the console."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>body {{ margin: 8px; max-width: 860px; background: white; color: #222; font-family: {font} }}
h1 {{ font-size: 16px; margin: 4px 0; font-weight: 600 }}
p {{ font-size: 12px; color: #595959; margin: 2px 0 }} h3 {{ font-size: 13px }}</style></head>
<body><h1>{title}</h1>{remarks}{body}</div>
<script>{before}</script><script type="module">{script}</script>
<script type="module">{fit}</script></body></html>
"""


@runtime_checkable
class Rendered(Protocol):
    """What CircuitsVis' functions return."""

    local_src: str


def as_text(token: str) -> str:
    """A token that a canvas shows letter by letter.

    Example:
        >>> len(as_text("</script>")) == len("</script>"), "<" in as_text("</script>")
        (True, False)
    """
    return token.replace("<", _LESS_THAN)


def as_html(token: str) -> str:
    """A token that shows letter by letter where it is taken for HTML, and where it is not.

    Example:
        >>> as_html("a&b").replace(chr(0x2060), "|")
        'a&|b'
    """
    return as_text(re.sub("[<&]", lambda found: found[0] + _JOINER, token))


def page(
    rendered: Rendered, *, title: str, remarks: Sequence[str] = (), height: int
) -> ScriptFigure:
    """The page of a drawing.

    Args:
        rendered: The drawing, of tokens that went through `as_text` or `as_html`.
        title: Its heading.
        remarks: Lines below it.
        height: Of the frame that notebooks show it in, until it is drawn, in pixels.

    Example:
        >>> import circuitsvis.tokens
        >>> drawn = circuitsvis.tokens.colored_tokens([as_html("</script>")], [1.0])
        >>> figure = page(drawn, title="demo", height=100)
        >>> figure.html.count("</script>")  # that of each script
        3
    """
    match = _SCRIPT.match(rendered.local_src)
    assert match is not None, "CircuitsVis writes a script behind an element"
    body, script = match[1], match[2]
    script = script.replace("\\ue000", "\\u003c")
    script = _COLOURS.sub(rf'\1="{NEGATIVE}",\2="{POSITIVE}")', script)
    paragraphs = "".join(f"<p>{escape(remark)}</p>" for remark in remarks if remark)
    html = _PAGE.format(
        policy=policy(_NO_WEBGL, script, _FIT),
        title=escape(title),
        remarks=paragraphs,
        body=body.replace("/>", ">"),
        before=_NO_WEBGL,
        script=script,
        fit=_FIT,
        font=style.FONT,
    )
    return ScriptFigure(html, height=height)

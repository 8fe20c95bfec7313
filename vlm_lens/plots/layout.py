"""What plotly figures of results have in common: their frame, and text that plotly shows as it is.

The background is white on dark pages too: ink and colours then keep their contrast.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any

from vlm_lens.plots import style

INK = "#222222"
MUTED = "#595959"
GRID = "#e6e8eb"
AXIS: dict[str, Any] = {
    "gridcolor": GRID,
    "zeroline": False,
    "showline": True,
    "linecolor": MUTED,
    "ticks": "outside",
    "tickcolor": MUTED,
}
"""How the axes of charts look."""
_LINE = 20
_PIXELS_A_LETTER = 7
_BUTTONS = 250


def shown(text: str) -> str:
    """A text that plotly shows letter by letter: it would take ``<b>`` for markup.

    Example:
        >>> shown("<image> & more")
        '&lt;image&gt; &amp; more'
    """
    return escape(" ".join(text.split()), quote=False)


def wrapped(text: str, width: int) -> str:
    """The same in lines of at most so many letters.

    Example:
        >>> wrapped("no collapse within <512>", 12)
        'no collapse<br>within &lt;512&gt;'
    """
    return "<br>".join(shown(line) for line in textwrap.wrap(text, width))


def framed(
    *, title: str, remarks: Sequence[str], width: int, height: int, margin: dict[str, int]
) -> dict[str, Any]:
    """The layout around the plots: title and remarks are put above them, in full.

    Args:
        title: The heading.
        remarks: Each starts a line below it.
        width: Of the figure, in pixels.
        height: Of what is below title and remarks, in pixels.
        margin: Around the plots, in pixels; what the heading needs is added.
    """
    room = max(width - _BUTTONS, 300)  # plotly's buttons are at the right
    heading = wrapped(title, round(room / _PIXELS_A_LETTER / 1.25))  # its letters are larger
    below = "<br>".join(wrapped(text, width // _PIXELS_A_LETTER) for text in remarks if text)
    lines = heading.count("<br>") + 1 + (below.count("<br>") + 1 if below else 0)
    head = 16 + _LINE * lines
    small = f'<br><span style="font-size:12px;color:{MUTED}">{below}</span>' if below else ""
    return {
        "title": {
            "text": heading + small,
            "font": {"size": 16, "color": INK},
            "x": 0.0,
            "xanchor": "left",
            "y": 1.0,
            "yanchor": "top",
            "yref": "container",
            "pad": {"l": 14, "t": 12},
        },
        "font": {"family": style.FONT, "size": 13, "color": INK},
        "width": width,
        "height": height + head,
        "margin": {**margin, "t": margin["t"] + head},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        # Plotly's own button would upload the figure.
        "modebar": {"remove": ["sendChartToCloud"]},
    }

"""A neuron's activations over the tokens of a text.

CircuitsVis draws coloured tokens too, but each drawing carries 1.3 MB of script, needs the network
unless it is asked not to, and puts tokens into the page as HTML, where ``<image>`` and ``<bos>``
disappear. These are plain spans of escaped text: some 200 bytes a token, and nothing to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor

from vlm_lens.plots import style
from vlm_lens.plots.html_figure import HtmlFigure

_CHIP = (
    "display:inline-block;white-space:pre;padding:1px 4px;margin:1px;border-radius:3px;"
    "box-shadow:inset 0 0 0 1px rgba(128,128,128,.28);background:"
)
_VISIBLE = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥"})


@dataclass(frozen=True, repr=False)
class TokenFigure(HtmlFigure):
    """Coloured tokens as HTML, which notebooks show and any page can hold."""


def neuron_over_tokens(
    tokens: Sequence[str],
    values: Shaped[Tensor, " pos"] | Shaped[np.ndarray, " pos"],
    *,
    groups: Sequence[str] | None = None,
    label: str = "activation",
    limit: float | None = None,
    collapse: int = 8,
) -> TokenFigure:
    """Draws tokens, each in the colour of its value; the value shows when pointed at.

    Args:
        tokens: The tokens as text, e.g. ``token_map.tokens``; white space is made visible.
        values: One number per token; NaN is left uncoloured.
        groups: A name for each token, e.g. ``token_map.role``: a new line with the name starts
            where it changes.
        label: What the values are, with their unit.
        limit: The magnitude that gets the full colour; by default the largest of these values.
        collapse: A run of at least so many equal tokens (image tokens, padding) becomes one chip
            with their number, mean and peak (the value furthest from 0), in the peak's colour.

    Raises:
        ValueError: There is not one value (and group) per token.

    Example:
        >>> import numpy as np
        >>> figure = neuron_over_tokens(["<image>"] * 64 + [" red"], np.arange(65.0))
        >>> "&lt;image&gt; ×64, peak 63, mean 31.5" in figure.html
        True
    """
    heat = style.to_numpy(values)
    names = [""] * len(tokens) if groups is None else groups
    if heat.shape != (len(tokens),) or len(names) != len(tokens):
        raise ValueError(
            f"expected one value and one group for each of {len(tokens)} tokens, got values of "
            f"shape {heat.shape} and {len(names)} groups"
        )
    limit = limit or style.colour_limit(heat)
    lines = []
    for name, run in groupby(range(len(tokens)), key=names.__getitem__):
        chips = _chips(tokens, heat, list(run), limit=limit, collapse=collapse)
        head = f'<span style="{style.SMALL}">{escape(name)}</span> ' if name else ""
        lines.append(f'<div style="line-height:1.75">{head}{chips}</div>')
    legend = style.legend(heat, limit, label)
    return TokenFigure(
        f'<div style="font-family:{escape(style.FONT)}">{"".join(lines)}{legend}</div>'
    )


def _chips(
    tokens: Sequence[str],
    heat: Float[np.ndarray, " pos"],
    positions: list[int],
    *,
    limit: float,
    collapse: int,
) -> str:
    chips = []
    for token, run in groupby(positions, key=tokens.__getitem__):
        places = list(run)
        if len(places) >= collapse:
            chips.append(_run_chip(token, places, heat[places], limit))
        else:
            chips += [_chip(token, f"position {p}: {heat[p]:.4g}", heat[p], limit) for p in places]
    return "".join(chips)


def _run_chip(token: str, places: list[int], run: Float[np.ndarray, " n"], limit: float) -> str:
    """One chip for a run of equal tokens."""
    text, hint = f"{token} ×{len(places)}", f"positions {places[0]} to {places[-1]}"
    known = run[np.isfinite(run)]
    if not len(known):
        return _chip(text, hint, 0.0, limit)
    peak = known[np.abs(known).argmax()]
    hint += f": from {known.min():.4g} to {known.max():.4g}"
    return _chip(f"{text}, peak {peak:.3g}, mean {known.mean():.3g}", hint, peak, limit)


def _chip(token: str, hint: str, value: float, limit: float) -> str:
    colour = style.css(*style.tint(float(value), limit))
    text = token.translate(_VISIBLE)
    text = text if text.strip() else text.replace(" ", "␣") or "∅"
    return f'<span style="{_CHIP}{colour}" title="{escape(hint)}">{escape(text)}</span>'

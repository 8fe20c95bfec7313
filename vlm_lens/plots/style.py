"""The house style: one colour code for values, on pictures and on tokens, and how images embed.

Orange is positive, blue is negative (Okabe and Ito's vermilion and blue, which colour-blind readers
tell apart), and the opacity is the size: nothing is drawn over what does nothing. Both work on
light and on dark pages. Zero is always the centre, so a hue always means the same sign.
"""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

Rgb = tuple[int, int, int]
POSITIVE: Rgb = (213, 94, 0)
NEGATIVE: Rgb = (0, 114, 178)
STRONGEST = 0.8
"""Opacity of the largest values: what lies under them stays readable."""
SMALL = "font-size:.8em"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"

_MAX_EDGE = 800
_MAX_PNG_PIXELS = 256 * 256


def to_numpy(
    values: Shaped[Tensor, "*shape"] | Shaped[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """Values to draw, as float64."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def colour_limit(values: Float[np.ndarray, "*shape"]) -> float:
    """The value that gets the full colour: the largest magnitude, or 1 where all are 0 or NaN."""
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    return float(largest) or 1.0


def tint(value: float, limit: float) -> tuple[Rgb, float]:
    """Colour and opacity of a value; beyond the limit it stays at the full colour.

    Example:
        >>> tint(-0.5, 1.0)
        ((0, 114, 178), 0.4)
    """
    share = min(abs(value) / limit, 1.0) if np.isfinite(value) else 0.0
    return (NEGATIVE if value < 0 else POSITIVE), round(STRONGEST * share, 3)


def css(colour: Rgb, opacity: float) -> str:
    """A colour as CSS (and plotly) write it.

    Example:
        >>> css((0, 114, 178), 0.4)
        'rgba(0,114,178,0.4)'
    """
    return f"rgba({','.join(map(str, colour))},{opacity:g})"


def value_range(values: Float[np.ndarray, "*shape"], limit: float) -> tuple[float, float]:
    """Where a colour bar starts and ends: centred on 0, or from 0 if nothing is negative."""
    return (-limit if (values < 0).any() else 0.0), limit


def colour_stops(low: float) -> list[tuple[float, str]]:
    """The colours of a colour bar that starts at `low`, each with its place from 0 to 1."""
    if low >= 0:
        return [(0.0, css(POSITIVE, 0.0)), (1.0, css(POSITIVE, STRONGEST))]
    return [
        (0.0, css(NEGATIVE, STRONGEST)),
        (0.5, css(NEGATIVE, 0.0)),  # both hues fade out in their own colour, so none bleeds over
        (0.5, css(POSITIVE, 0.0)),
        (1.0, css(POSITIVE, STRONGEST)),
    ]


def on_white(low: float) -> list[tuple[float, str]]:
    """The same colours as opaque ones: 0 is white, and what has no value is not."""

    def mixed(colour: Rgb) -> str:
        red, green, blue = (round(255 + STRONGEST * (channel - 255)) for channel in colour)
        return css((red, green, blue), 1.0)

    if low >= 0:
        return [(0.0, "rgb(255,255,255)"), (1.0, mixed(POSITIVE))]
    return [(0.0, mixed(NEGATIVE)), (0.5, "rgb(255,255,255)"), (1.0, mixed(POSITIVE))]


def legend(values: Float[np.ndarray, "*shape"], limit: float, label: str) -> str:
    """The colour bar of some values as a line of HTML.

    Args:
        values: What is drawn.
        limit: The magnitude that has the full colour.
        label: What the values are, with their unit.
    """
    low, high = value_range(values, limit)
    stops = ",".join(f"{colour} {place:.0%}" for place, colour in colour_stops(low))
    bar = (
        "display:inline-block;width:7em;height:.7em;margin:0 .5em;border-radius:2px;"
        f"box-shadow:inset 0 0 0 1px rgba(128,128,128,.4);background:linear-gradient(90deg,{stops})"
    )
    numbers = f'{low:.3g}<span style="{bar}"></span>{high:.3g}'
    return f'<div style="{SMALL};margin-top:.3em">{escape(label)} {numbers}</div>'


def backdrop(image: Image.Image) -> Image.Image:
    """An image in pale grey: values show on all of it, and its own colours are out of the way."""
    return image.convert("L").point(lambda level: 140 + level * 0.45)


def data_uri(image: Image.Image) -> str:
    """An image as a data URI, made smaller where it is larger than a page shows it.

    Small images become PNG (exact), large ones JPEG (a tenth of the size).
    """
    image = image.convert("RGB")
    image.thumbnail((_MAX_EDGE, _MAX_EDGE))
    kind = "png" if image.width * image.height <= _MAX_PNG_PIXELS else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

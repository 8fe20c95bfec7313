"""A neuron's exemplars with what was said of it: pictures with heat maps, texts with colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from vlm_lens.analyses.exemplars import SCALE, Exemplar, Exemplars
from vlm_lens.plots import style
from vlm_lens.plots.html_figure import HtmlFigure

_CARD = (
    "box-sizing:content-box;"  # whatever the page has
    "display:inline-block;vertical-align:top;margin:0 1em 1em 0;padding:.5em .6em;"
    "border-radius:6px;box-shadow:inset 0 0 0 1px rgba(128,128,128,.35);"
)
_MUTED = f"{style.SMALL};opacity:.72"
_CHIP = "padding:1px 2px;border-radius:3px;white-space:pre-wrap;background:"
_VISIBLE = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥"})
_SIDE = 136
"""Pixels on the page of the longer side of a picture."""
_CARD_WIDTH = 2 * _SIDE + 12


@dataclass(frozen=True, repr=False)
class ExemplarSheet(HtmlFigure):
    """A neuron's exemplars as HTML, which notebooks show and any page can hold."""


def exemplar_sheet(
    exemplars: Exemplars,
    *,
    held_out: Exemplars | None = None,
    explanation: str = "",
    remark: str = "",
    n: int = 4,
    context: int = 24,
) -> ExemplarSheet:
    """Shows where a neuron is most active, what it was explained as, and what that predicts.

    For each image there is its heat map in grey, and the part of it that activates the neuron most
    in its own colours. Held-out samples have the predicted heat map beside the true one, and the
    predicted activations in a line below the true ones.

    Args:
        exemplars: What the neuron was explained from.
        held_out: What the explanation was tested on.
        explanation: What the neuron is said to react to.
        remark: Below it, e.g. the score.
        n: How many of the top samples to show, of each.
        context: At most so many tokens of a text, around the most active one.

    Raises:
        ValueError: A number is not positive.

    Example:
        >>> import numpy as np
        >>> from vlm_lens.analyses.exemplars import Exemplar, Exemplars, SampleView
        >>> from vlm_lens.data import Sample
        >>> from vlm_lens.neurons import Neuron
        >>> view = SampleView(
        ...     0, Sample([], "<b> cat"), ("text",) * 2, ("<b>", " cat"), ("prompt",) * 2,
        ...     np.full(2, -1), np.full((2, 4), np.nan))
        >>> one = Exemplar(view, np.array([0.0, 10.0]))
        >>> sheet = exemplar_sheet(
        ...     Exemplars(Neuron("blocks.1.mlp.hook_act", 7), (one,), (), 2.5), explanation="cats")
        >>> "&lt;b&gt;" in sheet.html and "cats" in sheet.html
        True
    """
    for name, number in (("n", n), ("context", context)):
        if number < 1:
            raise ValueError(f"expected {name} of at least 1, got {number}")
    parts = [
        f'<div style="font-size:1.15em"><b>{escape(str(exemplars.neuron))}</b></div>',
        f'<div style="font-size:1.15em;margin:.2em 0">{escape(explanation)}</div>',
        f'<div style="{_MUTED};margin-bottom:.7em">{escape(remark)}</div>',
        _cards("Most active here; explained from these", exemplars.top[:n], context),
    ]
    if held_out is not None:
        title = "Held out: true, and predicted from the explanation (right, below)"
        parts.append(_cards(title, held_out.top[:n], context))
    label = f"activation ({SCALE:g} is {exemplars.maximum:.4g})"
    parts.append(style.legend(np.array([0.0, SCALE]), SCALE, label))
    return ExemplarSheet(f'<div style="font-family:{escape(style.FONT)}">{"".join(parts)}</div>')


def _cards(title: str, exemplars: Sequence[Exemplar], context: int) -> str:
    if not exemplars:
        return ""
    cards = "".join(_card(one, context) for one in exemplars)
    return f'<div style="font-weight:600;margin:.3em 0">{escape(title)}</div><div>{cards}</div>'


def _card(exemplar: Exemplar, context: int) -> str:
    predicted = None if exemplar.predicted is None else _comparable(exemplar.predicted)
    pictures = "".join(
        f'<div style="margin-bottom:.3em">{_pictures(exemplar, image, predicted)}</div>'
        for image in exemplar.view.pictured
    )
    text = _text(exemplar, predicted, context)
    head = f"sample {exemplar.view.number}, peak {exemplar.peak:.2g}"
    return (
        f'<div style="{_CARD}width:{_CARD_WIDTH}px"><div style="{_MUTED}">{head}</div>'
        f"{pictures}{text}</div>"
    )


def _comparable(predicted: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Predictions from 0 to 10: those of a simulator with another scale are stretched to it."""
    known = predicted[np.isfinite(predicted)]
    if not len(known) or (known.min() >= 0 and 1 < known.max() <= SCALE):
        return predicted
    return (predicted - known.min()) / max(float(np.ptp(known)), 1e-12) * SCALE


# Pictures -----------------------------------------------------------------------------------------


def _pictures(exemplar: Exemplar, image: int, predicted: Float[np.ndarray, " n"] | None) -> str:
    """The heat map; beside it the predicted one, or the most active part in its colours."""
    picture = exemplar.view.picture(image)
    shown = np.flatnonzero(exemplar.view.image_index == image)
    boxes, values = exemplar.view.boxes[shown], exemplar.values[shown]
    size = picture.size if picture is not None else _extent(boxes)
    drawn = [_heat(picture, size, boxes, values)]
    if predicted is not None:
        drawn.append(_heat(picture, size, boxes, predicted[shown]))
    elif picture is not None:
        drawn.append(_crop(picture, boxes, values))
    return "".join(drawn)


def _extent(boxes: Float[np.ndarray, "n 4"]) -> tuple[int, int]:
    width, height = np.ceil(boxes[:, 2:].max(0)).astype(int).tolist()
    return width, height


def _heat(
    picture: Image.Image | None,
    size: tuple[int, int],
    boxes: Float[np.ndarray, "n 4"],
    values: Float[np.ndarray, " n"],
) -> str:
    """The picture in pale grey under one rectangle a patch, each of which says its value."""
    width, height = size
    below = '<rect width="100%" height="100%" fill="#ddd"/>'
    if picture is not None:
        below = (
            f'<image href="{style.data_uri(style.backdrop(picture))}" width="{width}" '
            f'height="{height}" preserveAspectRatio="none" style="image-rendering:auto"/>'
        )
    order = np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), kind="stable")
    cells = "".join(_cell(boxes[i], float(values[i])) for i in order)
    scale = _SIDE / max(size)
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width * scale:.0f}" '
        f'height="{height * scale:.0f}" role="img" aria-label="heat map" '
        f'style="margin-right:6px;vertical-align:top">{below}{cells}</svg>'
    )


def _cell(box: Float[np.ndarray, " 4"], value: float) -> str:
    colour, opacity = style.tint(value, SCALE)
    x0, y0, x1, y1 = (round(float(edge), 2) for edge in box)
    return (
        f'<rect x="{x0:g}" y="{y0:g}" width="{x1 - x0:g}" height="{y1 - y0:g}" '
        f'fill="rgb({",".join(map(str, colour))})" fill-opacity="{opacity:g}">'
        f"<title>{value:.3g}</title></rect>"
    )


def _crop(
    picture: Image.Image, boxes: Float[np.ndarray, "n 4"], values: Float[np.ndarray, " n"]
) -> str:
    """The part around the patches with at least half of the largest value, a patch wider."""
    peak = float(values.max(initial=0.0))
    if peak <= 0:
        return ""
    strong = boxes[values >= peak / 2]
    room = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)
    low = np.maximum(strong[:, :2].min(0) - room, 0)
    high = np.minimum(strong[:, 2:].max(0) + room, picture.size)
    x0, y0, x1, y1 = (round(float(edge)) for edge in (*low, *high))
    part = picture.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
    scale = _SIDE / max(part.size)
    return (
        f'<img src="{style.data_uri(part)}" alt="the most active part" '
        f'style="width:{part.width * scale:.0f}px;height:{part.height * scale:.0f}px;'
        f'vertical-align:top;image-rendering:{"pixelated" if scale > 2 else "auto"}">'
    )


# Text ---------------------------------------------------------------------------------------------


def _text(exemplar: Exemplar, predicted: Float[np.ndarray, " n"] | None, context: int) -> str:
    """The tokens around the most active one, and below them the same as predicted."""
    places = np.flatnonzero(exemplar.view.is_kind("text"))
    if not len(places):
        return ""
    peak = int(exemplar.values[places].argmax())
    start = max(0, min(peak - context // 2, len(places) - context))
    places = places[start : start + context]
    lines = [_chips(exemplar, places, exemplar.values)]
    if predicted is not None and np.isfinite(predicted[places]).any():
        label = f'<span style="{_MUTED}">predicted:</span> '
        lines.append(label + _chips(exemplar, places, predicted))
    return "".join(f'<div style="line-height:1.6;font-size:.88em">{line}</div>' for line in lines)


def _chips(
    exemplar: Exemplar, places: Int[np.ndarray, " shown"], values: Float[np.ndarray, " n"]
) -> str:
    tokens = exemplar.view.tokens
    between = "" if any(token.startswith(" ") for token in tokens) else " "
    return between.join(
        f'<span style="{_CHIP}{style.css(*style.tint(float(values[place]), SCALE))}" '
        f'title="{exemplar.view.roles[place]}: {values[place]:.3g}">'
        f"{escape(_visible(tokens[place]))}</span>"
        for place in places
    )


def _visible(token: str) -> str:
    shown = token.translate(_VISIBLE)
    return shown if shown.strip() else shown.replace(" ", "␣") or "∅"

"""Prompts that ask a model to explain a neuron, or to predict where it is active."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

from vlm_lens.analyses.chat import ReplyError
from vlm_lens.analyses.exemplars import SCALE, Exemplar, SampleView
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.prompt import Prompt
from vlm_lens.json_text import parse_json
from vlm_lens.plots import style

EXPLAIN = (
    "You study one neuron of a model that reads images and text. For each sample you see where the "
    "neuron is active, from 0 (not at all) to 10 (most). An image is shown twice: as it is, and in "
    "grey with orange where the neuron is active. In the text, a number in brackets says how "
    "active the neuron is at the word before it; other words have 0. Say what makes the neuron "
    "active, in at most 20 words, as specific as the samples allow. Reply with that only."
)
"""Ours: the paper ("Deciphering", arXiv 2502.18485) does not publish what it asks."""

SIMULATE = (
    "You predict how active one neuron of a model that reads images and text is, from 0 (not at "
    "all) to 10 (most), given a description of what makes it active. Most values are 0. Reply with "
    "JSON only, in the form that is asked for."
)

_LEAST_SIDE = 256
_LONGEST_REPLY = 300


def explain_prompt(
    exemplars: Sequence[Exemplar], *, instruction: str = EXPLAIN, context: int = 40
) -> Prompt:
    """Asks what a neuron reacts to.

    Args:
        exemplars: What is shown.
        instruction: What to do.
        context: At most so many tokens of a text, around the most active one.
    """
    parts: list[str | Image.Image] = []
    for number, exemplar in enumerate(exemplars, start=1):
        parts.append(f"Sample {number}:")
        for image in exemplar.view.pictured:
            if (picture := heat_picture(exemplar, image)) is not None:
                parts.append(picture)
        if text := marked_text(exemplar, context=context):
            parts.append(f"Text: {text}")
    return Prompt(instruction, tuple(parts))


def simulate_prompt(
    explanation: str, view: SampleView, *, instruction: str = SIMULATE, grid: int = 8
) -> Prompt:
    """Asks where a neuron of this description would be active in a sample.

    Args:
        explanation: The description.
        view: The sample.
        instruction: What to do.
        grid: An image is cut into so many rows and columns of cells.
    """
    parts: list[str | Image.Image] = [f"The neuron is active at: {explanation}"]
    asked = []
    for image in view.pictured:
        if (picture := view.picture(image)) is None:
            raise ReplyError(f"image {image} of sample {view.number} is not there to be shown")
        parts.append(enlarged(picture))
        asked.append(
            f'"image {image + 1}": {grid} lists of {grid} numbers each, one for each cell of a '
            f"{grid} x {grid} grid over that image, row by row from the top left"
        )
    tokens = _tokens(view)
    if tokens:
        parts.append(f"Words, {len(tokens)} of them: {json.dumps(tokens, ensure_ascii=False)}")
        asked.append(f'"words": a list of {len(tokens)} numbers, one for each word')
    parts.append(f"Reply with a JSON object of {' and '.join(asked)}.")
    return Prompt(instruction, tuple(parts))


def read_explanation(reply: str) -> Explanation:
    """The explanation in a reply.

    Raises:
        ReplyError: There is none.

    Example:
        >>> read_explanation(' "Red things."').text
        'Red things.'
    """
    text = " ".join(reply.split()).strip("\"'` ")
    if not text:
        raise ReplyError("the reply says nothing")
    return Explanation(text[:_LONGEST_REPLY])


def read_prediction(reply: str, view: SampleView, *, grid: int = 8) -> Float[np.ndarray, " n"]:
    """The activations in a reply, at each position of a sample.

    Raises:
        ReplyError: It is not JSON of the form that `simulate_prompt` asks for.
    """
    found = np.full(len(view), np.nan)
    content = _json_in(reply)
    for image in view.pictured:
        cells = _numbers(content, f"image {image + 1}", (grid, grid))
        shown = view.image_index == image
        boxes = view.boxes[shown]
        picture = view.picture(image)
        size = boxes[:, 2:].max(0) if picture is None else np.array(picture.size, dtype=float)
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        column, row = np.clip((centres / size * grid).astype(np.int64), 0, grid - 1).T
        found[shown] = cells[row, column]
    if tokens := _tokens(view):
        found[view.is_kind("text")] = _numbers(content, "words", (len(tokens),))
    return found


def _json_in(reply: str) -> dict[str, Any]:
    """The JSON object in a reply, whatever is around it."""
    match = re.search(r"\{.*\}", reply, flags=re.DOTALL)
    try:
        content = parse_json(match[0]) if match else None
    except ValueError as error:
        raise ReplyError(f"the reply is not JSON ({error}): {reply[:80]!r}") from error
    if not isinstance(content, dict):
        raise ReplyError(f"expected a JSON object, got {reply[:80]!r}")
    return content


def _numbers(
    content: dict[str, Any], name: str, shape: tuple[int, ...]
) -> Float[np.ndarray, "*shape"]:
    try:
        found = np.array(content.get(name), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ReplyError(f"expected numbers as {name!r}, got {content.get(name)!r}") from error
    if found.shape != shape or not np.isfinite(found).all():
        raise ReplyError(f"expected numbers of shape {shape} as {name!r}, got {found.shape}")
    return np.clip(found, 0.0, SCALE)


def _tokens(view: SampleView) -> list[str]:
    return [
        token.strip() for token, kind in zip(view.tokens, view.kinds, strict=True) if kind == "text"
    ]


# Showing ------------------------------------------------------------------------------------------


def marked_text(exemplar: Exemplar, *, context: int) -> str:
    """The text, with the activation behind each token where it is at least 0.5.

    Example:
        >>> from vlm_lens.data import Sample
        >>> view = SampleView(0, Sample([], ""), ("text",) * 2, ("a", " cat"), ("prompt",) * 2,
        ...                   np.full(2, -1), np.full((2, 4), np.nan))
        >>> marked_text(Exemplar(view, np.array([0.2, 9.6])), context=40)
        'a cat [10]'
    """
    places = np.flatnonzero(exemplar.view.is_kind("text"))
    if not len(places):
        return ""
    peak = int(exemplar.values[places].argmax())
    start = max(0, min(peak - context // 2, len(places) - context))
    said = []
    for place in places[start : start + context]:
        token, value = exemplar.view.tokens[place].strip(), exemplar.values[place]
        said.append(f"{token} [{value:.0f}]" if value >= 0.5 else token)
    return " ".join(said)


def heat_picture(exemplar: Exemplar, image: int) -> Image.Image | None:
    """An image as it is, and beside it in grey with the activations over it; None if not known."""
    picture = exemplar.view.picture(image)
    if picture is None:
        return None
    shown = enlarged(picture)
    grey = style.backdrop(shown).convert("RGBA")
    heat = Image.new("RGBA", shown.size)
    draw = ImageDraw.Draw(heat)
    scale = shown.width / picture.width
    for place in np.flatnonzero(exemplar.view.image_index == image):
        colour, opacity = style.tint(float(exemplar.values[place]), SCALE)
        x0, y0, x1, y1 = (float(edge) * scale for edge in exemplar.view.boxes[place])
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), (*colour, round(255 * opacity)))
    both = Image.new("RGB", (2 * shown.width, shown.height))
    both.paste(shown, (0, 0))
    both.paste(Image.alpha_composite(grey, heat).convert("RGB"), (shown.width, 0))
    return both


def enlarged(picture: Image.Image) -> Image.Image:
    """A tiny image in squares that can be seen; others as they are."""
    times = -(-_LEAST_SIDE // max(picture.size))
    if times <= 1:
        return picture
    size = (picture.width * times, picture.height * times)
    return picture.resize(size, Image.Resampling.NEAREST)

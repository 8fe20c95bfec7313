"""The words of the `shapes` world: what objects can be called and where they can lie."""

from __future__ import annotations

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross", "star")
DIGITS = tuple("0123456789")
NAMES = SHAPES + DIGITS
PLURALS = dict(
    zip(SHAPES, ("circles", "squares", "triangles", "crosses", "stars"), strict=True),
)
NUMBERS = ("zero", "one", "two", "three", "four")
"""Counts are said in number words, so that they never share a token with a drawn digit."""

PLACES = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
"""The 3x3 grid in raster order: place i is row i // 3, column i % 3."""

RELATIONS = ("left of", "right of", "above", "below")

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")

_PHRASES = (
    "what color is the object at the top left ?",
    "what shape digit where is there a how many objects shapes digits are",
    "describe the image scene . question : answer : and yes no",
)


def vocabulary() -> dict[str, int]:
    """Maps every token of the model to its id: special tokens first, then words by first use.

    Example:
        >>> vocabulary()["<pad>"], "circle" in vocabulary()
        (0, True)
    """
    words = " ".join((*COLORS, *SHAPES, *DIGITS, *PLURALS.values(), *NUMBERS, *PLACES))
    words += " " + " ".join((*RELATIONS, *_PHRASES))
    tokens = dict.fromkeys((*SPECIAL_TOKENS, *words.split()))
    return {token: index for index, token in enumerate(tokens)}

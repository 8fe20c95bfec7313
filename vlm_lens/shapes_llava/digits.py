"""Real handwritten digits: scikit-learn's `load_digits`, split by image and upscaled smoothly."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from PIL import Image
from sklearn.datasets import load_digits

SPLITS = ("train", "val", "test")
HELD_OUT_TENTHS = {"train": range(2, 10), "val": range(1), "test": range(1, 2)}
"""Which tenths of every class, in a fixed random order, belong to which split."""

UPSCALE = 4
MARGIN = 2
"""Empty source pixels around every 8x8 image, so that turning a digit never cuts it."""

_SPLIT_SEED = 20


@cache
def digit_indices(split: str) -> tuple[tuple[int, ...], ...]:
    """Which `load_digits` images a split may draw, per digit class 0 to 9.

    The split is stratified and fixed: every class is shuffled with a constant seed, one tenth
    goes to `val`, one tenth to `test` and the rest to `train`.

    Args:
        split: "train", "val" or "test".

    Returns:
        Ten tuples of image indices, one per class.

    Raises:
        ValueError: when `split` is none of the three.

    Example:
        >>> sum(len(images) for images in digit_indices("train"))
        1433
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    rng = np.random.default_rng(_SPLIT_SEED)
    _, target = _load()
    chosen = []
    for digit in range(10):
        images = rng.permutation(np.flatnonzero(target == digit))
        tenth = np.arange(len(images)) * 10 // len(images)
        chosen.append(tuple(images[np.isin(tenth, list(HELD_OUT_TENTHS[split]))].tolist()))
    return tuple(chosen)


@cache
def digit_glyphs() -> Float32[np.ndarray, "n side side"]:
    """All 1,797 images with ink in [0, 1], with an empty margin, upscaled by cubic interpolation.

    Example:
        >>> digit_glyphs().shape
        (1797, 48, 48)
    """
    images, _ = _load()
    ink = np.pad(images, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))) / 16
    side = ink.shape[-1] * UPSCALE
    glyphs = [
        Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
        for image in ink.astype(np.float32)
    ]
    return np.stack([np.asarray(glyph) for glyph in glyphs])


def _load() -> tuple[Float64[np.ndarray, "n 8 8"], Int64[np.ndarray, " n"]]:
    """Images with ink from 0 to 16, and the digits that they show."""
    digits: Any = load_digits()
    return digits.images, digits.target

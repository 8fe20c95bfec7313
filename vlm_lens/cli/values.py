"""What options take: numbers, texts and paths that mean something."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def finite(text: str) -> float:
    """A number; NaN and infinity are none that any option means.

    Example:
        >>> finite("1e-3")
        0.001
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a finite number, got {text!r}")
    return number


def named(text: str) -> str:
    """A text that is not empty, which would be taken for none."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected a name, got {text!r}")
    return text


def path(text: str) -> Path:
    """A path; an empty text would be the folder that one is in."""
    return Path(named(text))

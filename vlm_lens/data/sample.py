"""One sample of a data set: images, a prompt and, where known, the expected answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from PIL.Image import Image

ONE_ALONE = "expected several samples, got one Sample: pass it in a list, [sample]"


@dataclass
class Sample:
    """One prompt for a vision-language model.

    Attributes:
        images: the images of the prompt, in order; empty for a prompt of text only.
        text: the prompt, without image placeholders and without a chat template.
        answer: the expected answer, or None when it is not known.
        category: what kind of question it is, or None.
        annotations: anything else that is known about the sample.

    Example:
        >>> Sample(images=[], text="what color is the sky ?", answer="blue").category is None
        True
    """

    images: list[Image]
    text: str
    answer: str | None = None
    category: str | None = None
    annotations: dict[str, Any] = field(default_factory=dict)


def check_are_samples(samples: Iterable[Any] | Sample) -> None:
    """Refuses what is no sample, before anything is done with it.

    Raises:
        TypeError: It is one sample, or holds something else.

    Example:
        >>> check_are_samples(["what color is the sky ?"])
        Traceback (most recent call last):
        TypeError: expected samples, got str (at 0): pass Sample(images=[...], text="...")
    """
    if isinstance(samples, Sample):
        raise TypeError(ONE_ALONE)
    for number, sample in enumerate(samples):
        if not isinstance(sample, Sample):
            raise TypeError(
                f"expected samples, got {type(sample).__name__} (at {number}): pass "
                'Sample(images=[...], text="...")'
            )


def check_count(name: str, number: Any) -> None:
    """Refuses what is no whole number from 1.

    Raises:
        TypeError: It is something else.
        ValueError: It is less.

    Example:
        >>> check_count("n", 1.5)
        Traceback (most recent call last):
        TypeError: expected n as a whole number, got 1.5
    """
    if isinstance(number, bool) or not isinstance(number, Integral):  # NumPy's are some too
        raise TypeError(f"expected {name} as a whole number, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")

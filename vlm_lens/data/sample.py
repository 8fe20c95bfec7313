"""One sample of a data set: images, a prompt and, where known, the expected answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image


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

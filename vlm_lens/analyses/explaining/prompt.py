"""Prompts of text and images, and what they cost, whoever answers them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vlm_lens.plots import style

LETTERS_PER_TOKEN = 4
"""The rule of thumb for English text in OpenAI's documentation."""

_TILE, _SHORT, _LONG = 512, 768, 2048
_BASE_TOKENS, _TILE_TOKENS = 85, 170


@dataclass(frozen=True)
class Prompt:
    """A question to a model that reads text and images.

    Attributes:
        instruction: What to do.
        parts: What to do it with: texts and images, in order.
    """

    instruction: str
    parts: tuple[str | Image.Image, ...]

    @property
    def images(self) -> list[Image.Image]:
        """The images, in order."""
        return [part for part in self.parts if isinstance(part, Image.Image)]

    @property
    def text(self) -> str:
        """All texts."""
        texts = [part for part in self.parts if isinstance(part, str)]
        return "\n".join([self.instruction, *texts])

    def messages(self, *, detail: str = "auto") -> list[dict[str, Any]]:
        """As messages of OpenAI's chat protocol, images as data URIs."""
        content = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image_url", "image_url": {"url": style.data_uri(part), "detail": detail}}
            for part in self.parts
        ]
        return [
            {"role": "system", "content": self.instruction},
            {"role": "user", "content": content},
        ]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What some requests are going to cost, before any is sent.

    The estimate is high rather than low: replies count as if they were as long as they may be.

    Attributes:
        requests: How many are sent.
        images: How many images go with them.
        input_tokens: Text at four letters a token, and images by `image_tokens`.
        output_tokens: As many as replies may have.
        price: In the currency of the prices; None where these are not known.

    Example:
        >>> one = Cost(requests=1, images=1, input_tokens=300, output_tokens=100, price=0.25)
        >>> print(one + one)
        requests: 2, images: 2; about 600 tokens in, at most 200 out; price at most 0.5
    """

    requests: int = 0
    images: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    price: int | float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        known = self.price is not None and other.price is not None
        return Cost(
            requests=self.requests + other.requests,
            images=self.images + other.images,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            price=self.price + other.price if known else None,  # type: ignore[operator]
        )

    def times(self, n: int) -> Cost:
        """The cost of as many requests like these."""
        return Cost(
            requests=self.requests * n,
            images=self.images * n,
            input_tokens=self.input_tokens * n,
            output_tokens=self.output_tokens * n,
            price=None if self.price is None else self.price * n,
        )

    def __str__(self) -> str:
        price = "price not known" if self.price is None else f"price at most {self.price:.4g}"
        return (
            f"requests: {self.requests:,}, images: {self.images:,}; about "
            f"{self.input_tokens:,} tokens in, at most {self.output_tokens:,} out; {price}"
        )


def image_tokens(size: tuple[int, int]) -> int:
    """How many tokens an image is, by the rule that OpenAI states for GPT-4o in high detail.

    The image is fitted into 2048 x 2048, then its short side into 768; it is 85 tokens, and 170
    for each square of 512 pixels. Other endpoints count otherwise.

    Example:
        >>> image_tokens((1024, 1024)), image_tokens((64, 64))
        (765, 255)
    """
    width, height = size
    scale = min(1.0, _LONG / max(size))
    scale = min(scale, _SHORT / (min(size)))
    tiles = math.ceil(width * scale / _TILE) * math.ceil(height * scale / _TILE)
    return _BASE_TOKENS + _TILE_TOKENS * tiles


def text_tokens(texts: Iterable[str]) -> int:
    """About how many tokens texts are."""
    return math.ceil(sum(map(len, texts)) / LETTERS_PER_TOKEN)

"""A checksum of samples, by which a checkpoint knows its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from PIL.Image import Image

from vlm_lens.data.sample import Sample


def digest_of_samples(samples: Sequence[Sample]) -> str:
    """A checksum of what samples ask, show and expect, and of their categories.

    Example:
        >>> digest_of_samples([Sample([], "one")]) == digest_of_samples([Sample([], "two")])
        False
    """
    digest = hashlib.sha256()
    for sample in samples:
        said = (sample.text, sample.answer, sample.category, len(sample.images))
        digest.update(repr(said).encode())
        for image in sample.images:
            digest.update(repr((image.size, image.mode)).encode())
            digest.update(_pixels(image))
    return digest.hexdigest()


def _pixels(image: Image) -> bytes:
    """An image's pixels; none of one that is damaged, which whoever looks at it leaves out."""
    try:
        return image.tobytes()
    except (OSError, SyntaxError, ValueError):  # as Pillow's decoders raise
        return b""

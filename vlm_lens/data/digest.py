"""A checksum of samples, by which a checkpoint knows its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from vlm_lens.data.sample import Sample


def digest_of_samples(samples: Sequence[Sample]) -> str:
    """A checksum of what samples ask, show and expect.

    Example:
        >>> digest_of_samples([Sample([], "one")]) == digest_of_samples([Sample([], "two")])
        False
    """
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.text, sample.answer, len(sample.images))).encode())
        for image in sample.images:
            digest.update(repr((image.size, image.mode)).encode())
            digest.update(image.tobytes())
    return digest.hexdigest()

"""Two halves of a data set that have no image, and no question without an image, in common."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlm_lens.data import Sample
from vlm_lens.data.sample import check_are_samples


def halves(
    samples: Sequence[Sample], *, held_out: int | float, seed: int
) -> tuple[list[int], list[int]]:
    """Splits samples by what they show: the same images (or texts, without images) stay together.

    Args:
        samples: The data set.
        held_out: The share of the second part, of what differs.
        seed: The same seed gives the same split.

    Returns:
        The numbers of the samples of the first part and of the second one, rising.

    Raises:
        TypeError: Something is no sample.
        ValueError: All samples show the same, so that there is nothing to hold out.

    Example:
        >>> samples = [Sample([], text) for text in ("a cat", "a dog", "a cat", "a cow")]
        >>> halves(samples, held_out=0.5, seed=0)
        ([1], [0, 2, 3])
    """
    check_are_samples(samples)
    groups: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        groups.setdefault(shown_in(sample), []).append(number)
    if len(groups) < 2:
        raise ValueError(
            f"expected samples that show different things, so that some can be held out, but all "
            f"{len(samples)} show the same: add samples"
        )
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    n_held_out = min(max(1, round(held_out * len(groups))), len(groups) - 1)
    every = list(groups.values())
    first, second = order[n_held_out:], order[:n_held_out]
    return (
        sorted(number for group in first for number in every[group]),
        sorted(number for group in second for number in every[group]),
    )


def shown_in(sample: Sample) -> str:
    """A checksum of the images of a sample, or of its text where it has none."""
    digest = hashlib.sha256()
    if not sample.images:
        digest.update(sample.text.encode())
    for image in sample.images:
        digest.update(repr((image.size, image.mode)).encode())
        digest.update(_pixels(image))
    return digest.hexdigest()


def _pixels(image: Image.Image) -> bytes:
    try:
        return image.tobytes()
    except Exception as error:  # Pillow's decoders have many; who prepares it says what is wrong
        return repr(error).encode()

"""Samples from a Hugging Face data set, streamed with the optional package `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from PIL.Image import DecompressionBombError, Image

from vlm_lens.by_name import check_hub_answers
from vlm_lens.data.sample import Sample

TEXT_KEYS = ("text", "question", "prompt")
"""Columns that hold the prompt; the first that a data set has is taken."""
IMAGE_KEYS = ("images", "image")


def load_hub(name: str, *, split: str, n: int) -> list[Sample]:
    """Streams the first `n` rows of a data set.

    The prompt is the column "text", "question" or "prompt"; the images are the column "images"
    or "image" (a row without any is a prompt of text only); "answer" and "category" are optional;
    all other columns go to `Sample.annotations`.

    Args:
        name: name of the data set, such as "owner/data".
        split: name of one of its splits.
        n: how many samples at most.

    Raises:
        ImportError: when the package `datasets` is not installed.
        ValueError: when the rows hold no prompt or something else than images.
        ConnectionError: when the hub cannot be reached.
        FileNotFoundError: when it has no such data set.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"there is no folder {name!r} here, and loading a Hugging Face data set of that name "
            "needs the package `datasets`: pip install datasets"
        ) from error
    check_hub_answers(name, kind="dataset")
    try:
        rows = load_dataset(name, split=split, streaming=True)
    except FileNotFoundError as error:  # what `datasets` raises for a data set that it cannot find
        raise FileNotFoundError(
            f"there is no folder {name!r} here, and no such data set on the hub: {error}"
        ) from error
    try:
        return [to_sample(row, where=f"{name}, row {i}") for i, row in enumerate(islice(rows, n))]
    except DecompressionBombError as error:
        raise ValueError(f"{name}: an image is too large for Pillow: {error}") from error


def to_sample(row: Mapping[str, Any], *, where: str) -> Sample:
    """Turns one row of a data set into a sample.

    Raises:
        ValueError: when the row has no column for the prompt, or its images are not images.

    Example:
        >>> to_sample({"question": "why ?", "level": 3}, where="row 0").annotations
        {'level': 3}
    """
    rest = dict(row)
    text_key = next((key for key in TEXT_KEYS if key in rest), None)
    if text_key is None:
        raise ValueError(f"{where}: expected one of the columns {TEXT_KEYS}, got {sorted(rest)}")
    image_key = next((key for key in IMAGE_KEYS if rest.get(key) is not None), None)
    return Sample(
        text=str(rest.pop(text_key)),
        images=[] if image_key is None else _to_images(rest.pop(image_key), where),
        answer=_optional(rest.pop("answer", None)),
        category=_optional(rest.pop("category", None)),
        annotations=rest,
    )


def _to_images(value: Any, where: str) -> list[Image]:
    images = list(value) if isinstance(value, list | tuple) else [value]
    for image in images:
        if not isinstance(image, Image):
            raise ValueError(f"{where}: expected images, got {type(image).__name__}")
    return images


def _optional(value: Any) -> str | None:
    return None if value is None else str(value)

"""Samples from a folder of images with a `metadata.jsonl`, as Hugging Face's imagefolder has it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_lens.data.sample import Sample

METADATA = "metadata.jsonl"


def load_imagefolder(folder: Path, *, n: int) -> list[Sample]:
    """Reads the first `n` samples of a folder.

    Every line of its `metadata.jsonl` is an object with "file_name" (relative to the folder) and
    "text", and optionally "answer" and "category", all strings; any other key goes to
    `Sample.annotations`. Empty lines are skipped.

    Args:
        folder: a folder with images and a `metadata.jsonl`.
        n: how many samples at most.

    Returns:
        The samples, in the order of the lines, each with its image as it is in the file.

    Raises:
        FileNotFoundError: when the folder, its `metadata.jsonl` or an image is not there.
        ValueError: when a line is not as described, an image is damaged, or there is no line. The
            message names the line.

    Example:
        >>> from vlm_lens.shapes_llava import IMAGES
        >>> load_imagefolder(IMAGES, n=1)[0].images[0].mode
        'RGB'
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of images, but there is no folder {folder}")
    metadata = folder / METADATA
    if not metadata.is_file():
        raise FileNotFoundError(f"expected a {METADATA} in the folder of images {folder}")
    lines = enumerate(metadata.read_text(encoding="utf-8").splitlines(), start=1)
    filled = [(number, line) for number, line in lines if line.strip()]
    if not filled:
        raise ValueError(f"{metadata} holds no samples; expected one JSON object per line")
    return [_read_line(folder, f"{metadata}, line {number}", line) for number, line in filled[:n]]


def _read_line(folder: Path, where: str, line: str) -> Sample:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: expected a JSON object, but {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(entry).__name__}")
    file_name, text = _take(entry, "file_name", where), _take(entry, "text", where)
    return Sample(
        images=[_open(folder / file_name, where)],
        text=text,
        answer=_take(entry, "answer", where) if "answer" in entry else None,
        category=_take(entry, "category", where) if "category" in entry else None,
        annotations=entry,
    )


def _take(entry: dict[str, Any], key: str, where: str) -> str:
    if key not in entry:
        raise ValueError(f"{where}: expected the key {key!r}, got only {sorted(entry)}")
    value = entry.pop(key)
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected {key!r} to be a string, got {value!r}")
    return value


def _open(path: Path, where: str) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no image {path}")
    try:
        with Image.open(path) as image:
            image.load()  # damage shows now and not in the middle of an experiment
            return image
    except OSError as error:
        raise ValueError(f"{where}: {path} is no image or is damaged: {error}") from error

"""Samples from a folder of images with a `metadata.jsonl`, as Hugging Face's imagefolder has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_lens.data.sample import Sample, check_count
from vlm_lens.data.utf8 import read_utf8
from vlm_lens.json_text import parse_json

METADATA = "metadata.jsonl"

_TEXT_ELSEWHERE = ("question", "prompt")
"""What other data sets call the text."""


def load_imagefolder(folder: str | Path, *, n: int = 200) -> list[Sample]:
    """Reads the first `n` samples of a folder.

    Every line of its `metadata.jsonl` is an object with "file_name" (relative to the folder) and
    "text", and optionally "answer" and "category", all strings; any other key goes to
    `Sample.annotations`. Empty lines are skipped. The file is in UTF-8. For example:

        {"file_name": "cat.png", "text": "what is on the sofa ?", "answer": "a cat"}
        {"file_name": "more/dog.jpg", "text": "is it a dog ?", "answer": "yes", "category": "pets"}

    Args:
        folder: a folder with images and a `metadata.jsonl`.
        n: how many samples at most.

    Returns:
        The samples, in the order of the lines, each with its image as it is in the file.

    Raises:
        TypeError: when `n` is no whole number.
        FileNotFoundError: when the folder, its `metadata.jsonl` or an image is not there.
        ValueError: when a line is not as described, an image is damaged or too large for Pillow,
            or there is no line. The message names the line.

    Example:
        >>> from vlm_lens.shapes_llava import IMAGES
        >>> load_imagefolder(IMAGES, n=1)[0].images[0].mode
        'RGB'
    """
    check_count("n", n)
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        there = f"{folder} is a file" if folder.exists() else f"there is no folder {folder}"
        raise FileNotFoundError(f"expected a folder of images, but {there}")
    metadata = folder / METADATA
    if not metadata.is_file():
        raise FileNotFoundError(
            f"expected a {METADATA} in the folder of images {folder}: a JSON object a line, such "
            'as {"file_name": "a.png", "text": "what is this ?"}'
        )
    # Only a newline ends a line: JSON may hold what str.splitlines takes for one, such as U+2028.
    lines = enumerate(read_utf8(metadata).split("\n"), start=1)
    filled = [(number, line) for number, line in lines if line.strip()]
    if not filled:
        raise ValueError(f"{metadata} holds no samples; expected one JSON object per line")
    return [_read_line(folder, f"{metadata}, line {number}", line) for number, line in filled[:n]]


def _read_line(folder: Path, where: str, line: str) -> Sample:
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise ValueError(f"{where}: expected a JSON object, but {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(entry).__name__}")
    for key in ("file_name", "text"):
        if key not in entry:
            raise ValueError(f"{where}: expected the key {key!r}, got only {_keys(entry, key)}")
    file_name, text = _take(entry, "file_name", where), _take(entry, "text", where)
    return Sample(
        images=[_open(folder, file_name, where)],
        text=text,
        answer=_take(entry, "answer", where) if "answer" in entry else None,
        category=_take(entry, "category", where) if "category" in entry else None,
        annotations=entry,
    )


def _keys(entry: dict[str, Any], missing: str) -> str:
    """The keys of an entry, and which of them may be the one that is missing."""
    meant = [key for key in _TEXT_ELSEWHERE if missing == "text" and key in entry]
    return f"{sorted(entry)}" + (f": rename {meant[0]!r} to 'text'" if meant else "")


def _take(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.pop(key)
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected {key!r} to be a string, got {_short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write half a character, as \ud83d
        raise ValueError(
            f"{where}: {key!r} holds half a character ({value[error.start]!a}), which is no text: "
            "write the whole one"
        ) from error
    return value


def _open(folder: Path, file_name: str, where: str) -> Image.Image:
    path, shown = folder / file_name, _short(file_name)
    if not os.path.isfile(path):  # unlike Path.is_file, also of names that can be none
        raise FileNotFoundError(f"{where}: there is no image {shown} in {folder}")
    try:
        with Image.open(path) as image:
            image.load()  # damage shows now and not in the middle of an experiment
            return image
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{where}: {shown} is too large for Pillow: {error} Make it smaller, or set "
            "PIL.Image.MAX_IMAGE_PIXELS = None if you know where it is from"
        ) from error
    except Exception as error:  # each of Pillow's decoders has its own kinds of error
        raise ValueError(f"{where}: {shown} is no image or is damaged: {error}") from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."

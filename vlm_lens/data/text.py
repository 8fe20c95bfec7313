"""Samples from a text file: passages without images, to measure perplexity on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vlm_lens.data.sample import Sample, check_count
from vlm_lens.data.utf8 import read_utf8

WORDS = 100
"""Words of a passage: well below PCICN's 512 tokens, and as long as the passage it is shown on."""

SHORTEST = 50
"""Passages need more letters than this, as in PCICN."""


def load_texts(path: str | Path, *, n: int = 200, words: int = WORDS) -> list[Sample]:
    """Cuts the beginning of a text file into passages, one after the other.

    Args:
        path: A text file, UTF-8. Words are what white space separates.
        n: How many passages at most.
        words: How many words each passage has; the last one of the file may have fewer.

    Returns:
        Samples without images or answers, whose texts are the passages as they are in the file.
        Passages of at most 50 letters are left out (PCICN, arXiv 2510.10238, does so too).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A number is less than 1, it is no text, or has no passage that is long enough.

    Example:
        >>> from vlm_lens.shapes_llava import WEIGHTS
        >>> passages = load_texts(WEIGHTS / "README.md", n=3, words=20)
        >>> [len(passage.text.split()) for passage in passages]
        [20, 20, 20]
    """
    check_count("n", n)
    check_count("words", words)
    text = _read(Path(path).expanduser())
    long_enough = (passage for passage in _passages(text, words) if len(passage) > SHORTEST)
    samples = [Sample(images=[], text=passage) for passage in islice(long_enough, n)]
    if not samples:
        raise ValueError(
            f"{path} has no passage of {words} words with more than {SHORTEST} letters: give a "
            "longer text, or more words a passage"
        )
    return samples


def _passages(text: str, words: int) -> Iterator[str]:
    spans = (match.span() for match in re.finditer(r"\S+", text))
    while some := list(islice(spans, words)):
        yield text[some[0][0] : some[-1][1]]


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"expected a text file, but there is no file {path}")
    return read_utf8(path)

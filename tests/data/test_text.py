"""Passages of a text file: cut by words, as they are in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_lens.data.text import SHORTEST, load_texts


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 30 words of 9 letters, in lines of 7, with a byte order mark and umlauts."""
    words = [f"wörter-{i:02}" for i in range(30)]
    lines = [" ".join(words[i : i + 7]) for i in range(0, 30, 7)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n" + "\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def test_passages_have_so_many_words_and_all_the_text(text: Path) -> None:
    samples = load_texts(text, words=10)
    assert [len(sample.text.split()) for sample in samples] == [10, 10, 10]
    assert samples[0].text.startswith("wörter-00 wörter-01")
    assert "wörter-06\nwörter-07" in samples[0].text
    together = "\n".join(sample.text for sample in samples)
    assert together.split() == text.read_text(encoding="utf-8-sig").split()
    assert all(s.images == [] and s.answer is None and s.category is None for s in samples)


def test_no_more_passages_than_asked_for(text: Path) -> None:
    assert load_texts(text, words=10, n=2) == load_texts(text, words=10)[:2]


def test_short_passages_are_left_out(text: Path) -> None:
    """PCICN takes texts of more than 50 letters: five words of nine have 49, six have 59."""
    assert SHORTEST == 50
    lengths = [len(sample.text) for sample in load_texts(text, words=6)]
    assert lengths == [59] * 5
    with pytest.raises(ValueError, match="no passage of 5 words with more than 50 letters"):
        load_texts(text, words=5)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "no passage of 100 words"),
        (b"a word", {}, "no passage of 100 words"),
        (b"\xff\xfe\x00 not text", {}, "line 1: expected text in UTF-8.*UTF-16"),
        (b"a", {"n": 0}, "n must be at least 1, got 0"),
        (b"a", {"words": -1}, "words must be at least 1, got -1"),
    ],
)
def test_refuses_what_has_no_passages(
    tmp_path: Path, content: bytes, options: dict[str, int], message: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_texts(path, **options)


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.txt"):
        load_texts(tmp_path / "missing.txt")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_texts(tmp_path)

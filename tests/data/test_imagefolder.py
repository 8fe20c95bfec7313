"""Folders of images: what is read, and which line an error names."""

import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from vlm_lens.data import load_samples
from vlm_lens.inputs import load_image


def write(folder: Path, *lines: object) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGBA" if name == "a.png" else "L", (30, 20), 7).save(folder / name)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(text) + "\n")
    return folder


def test_folder_is_read_in_order(tmp_path: Path) -> None:
    first = {"file_name": "a.png", "text": "what ?", "answer": "x", "category": "c", "level": 3}
    folder = write(tmp_path, first, "", {"file_name": "b.png", "text": "why ?"})
    one, two = load_samples(folder)
    assert (one.text, one.answer, one.category) == ("what ?", "x", "c")
    assert one.annotations == {"level": 3}
    assert (two.text, two.answer, two.category, two.annotations) == ("why ?", None, None, {})
    assert [sample.images[0].mode for sample in (one, two)] == ["RGBA", "L"]
    assert one.images[0].size == (30, 20)


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"file_name": "a.png", "text": "what ?"})
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"line 1: 'a.png' is no image or is damaged"):
        load_samples(folder)


def test_a_string_is_a_path_too_and_n_limits(tmp_path: Path) -> None:
    folder = write(tmp_path, *[{"file_name": "a.png", "text": str(i)} for i in range(4)])
    assert [sample.text for sample in load_samples(str(folder), n=2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"line 2: expected a JSON object, but"),
        ([1, 2], r"line 2: expected a JSON object, got list"),
        ({"text": "x"}, r"line 2: expected the key 'file_name', got only \['text'\]"),
        ({"file_name": "a.png"}, r"line 2: expected the key 'text', got only \['file_name'\]"),
        ({"file_name": "a.png", "question": "?"}, "file_name', 'question'.: rename 'question' to"),
        ('{"file_name": "a.png", "text": "\\ud83d"}', r"line 2: 'text' holds half a character"),
        ("[" * 100_000, "line 2: expected a JSON object, but it is nested too deeply"),
        ('{"a": ' * 100_000, "line 2: expected a JSON object, but it is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "line 2: .* a number in it has too many digits"),
        ({"file_name": "a.png", "text": 3}, r"line 2: expected 'text' to be a string, got 3"),
        (
            {"file_name": "a.png", "text": "x", "answer": ["y"]},
            r"line 2: expected 'answer' to be a string, got \['y'\]",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: object, message: str) -> None:
    folder = write(tmp_path, {"file_name": "a.png", "text": "fine"}, line)
    with pytest.raises(ValueError, match=message):
        load_samples(folder)


SEPARATORS = ("\u2028", "\u2029", "\x85", "\xa0", "\u200b")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_with_a_newline_only_and_every_character_may_be_in_a_text(
    tmp_path: Path, encoding: str, end: str
) -> None:
    texts = [f"what{separator}color ? \U0001f600" for separator in SEPARATORS]
    folder = write(tmp_path)
    lines = [json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False) for text in texts]
    (folder / "metadata.jsonl").write_bytes((end.join(lines) + end).encode(encoding))
    assert [sample.text for sample in load_samples(folder)] == texts


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", ", line 2: expected text in UTF-8, but the byte 0xe9 is none: "),
        ("utf-16", ", line 1: expected text in UTF-8.*looks like UTF-16"),
        ("utf-16-le", ", line 2: expected text in UTF-8.*looks like UTF-16"),
        ("utf-32", ", line 1: expected text in UTF-8.*looks like UTF-16"),
    ],
)
def test_texts_in_another_encoding_are_refused_with_what_to_do(
    tmp_path: Path, encoding: str, message: str
) -> None:
    lines = [json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False) for text in "eé"]
    (write(tmp_path) / "metadata.jsonl").write_bytes("\n".join(lines).encode(encoding))
    with pytest.raises(ValueError, match=rf"metadata\.jsonl{message}.*save the file as UTF-8"):
        load_samples(tmp_path)


def test_an_image_that_is_too_large_for_pillow_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"file_name": "huge.png", "text": "x"})
    (folder / "huge.png").write_bytes(huge_png())
    with pytest.raises(ValueError, match=r"line 1: 'huge\.png' is too large for Pillow: .* pixels"):
        load_samples(folder)
    with pytest.raises(ValueError, match=r"huge\.png' is too large for Pillow: .* pixels"):
        load_image(folder / "huge.png")


def huge_png() -> bytes:
    """The beginning of an image of 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_missing_image_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"file_name": "c.png", "text": "x"})
    with pytest.raises(FileNotFoundError, match=r"line 1: there is no image .*c\.png"):
        load_samples(folder)
    for name in ("x\0.png", "n" * 5000, "../no/such.png", ""):
        with pytest.raises(FileNotFoundError, match="line 1: there is no image") as caught:
            load_samples(write(tmp_path, {"file_name": name, "text": "x"}))
        assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_missing_folder_metadata_and_samples(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="expected a folder of images, but .* is a file"):
        load_samples(str(tmp_path / "file"))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_samples(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_samples("./no-such-folder")
    with pytest.raises(FileNotFoundError, match=r"expected a metadata\.jsonl"):
        load_samples(tmp_path)
    with pytest.raises(ValueError, match="holds no samples"):
        load_samples(write(tmp_path, ""))

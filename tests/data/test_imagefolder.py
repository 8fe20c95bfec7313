"""Folders of images: what is read, and which line an error names."""

import json
from pathlib import Path

import pytest
from PIL import Image

from vlm_lens.data import load_samples


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
    with pytest.raises(ValueError, match=r"line 1: .*a.png is no image or is damaged"):
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
        ({"file_name": "a.png"}, r"line 2: expected the key 'text'"),
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


def test_missing_image_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, {"file_name": "c.png", "text": "x"})
    with pytest.raises(FileNotFoundError, match=r"line 1: there is no image .*c\.png"):
        load_samples(folder)


def test_missing_folder_metadata_and_samples(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_samples(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_samples("./no-such-folder")
    with pytest.raises(FileNotFoundError, match=r"expected a metadata\.jsonl"):
        load_samples(tmp_path)
    with pytest.raises(ValueError, match="holds no samples"):
        load_samples(write(tmp_path, ""))

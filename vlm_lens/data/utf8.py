"""Text files as they are written by whatever editor."""

from __future__ import annotations

from pathlib import Path


def read_utf8(path: Path) -> str:
    """The text in a file, in UTF-8 with or without a byte order mark; lines end with a newline.

    Raises:
        ValueError: It is no such text; the message names the line, and says what to do.
        OSError: The file cannot be read.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: expected text in UTF-8, but the byte "
            f"0x{raw[error.start]:02x} is none{_guess(raw)}: save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path}: expected text in UTF-8{_guess(raw)}: save the file as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _guess(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in raw:
        return " (it looks like UTF-16)"
    return ""

"""Results on disk: a folder with readable JSON, and safetensors where there are tensors.

Neither format can run code when it is read. The tensors of a result are in a file that is named for
its content, and which of them belong to it, its JSON says: so a result is there, or replaced by
another one, from the moment when the JSON is, and whatever ends the program before leaves the old.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vlm_lens.json_text import parse_json
from vlm_lens.whole_file import DamagedError, alone_in, put

FORMAT = "vlm_lens.result"
VERSION = 3
"""Version 1, of vlm_lens 0.1.0, had its tensors in ``kind.safetensors``; 2 had other fields."""

HALF_DONE = "what is half done starts anew, and results that are finished stay"
"""What is lost with a checkpoint."""

_START = f'{{\n "format": "{FORMAT}"'.encode()
"""What every file of ours begins with, however short a full disk has cut it."""

_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NOT_FINITE = re.compile(r"'*(inf|-inf|nan)")


def write_result(
    folder: str | os.PathLike[str],
    *,
    kind: str,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes ``kind.json``, and ``kind.<checksum>.safetensors`` for tensors, into a folder.

    Whatever else is in the folder stays as it is. An earlier result of the same kind is replaced in
    one step: it is there until the new one is. Infinite values and NaN are written as the texts
    "inf", "-inf" and "nan", which JSON allows (a text that says just that gets an apostrophe in
    front).

    Args:
        folder: Is made if there is none.
        kind: What the result is, e.g. "critical"; letters, digits, "-" and "_".
        fields: Numbers, texts, booleans, None, and lists and dicts of them. `read_result` returns
            the same values, tuples as lists.
        tensors: Of any shape and dtype, by name.

    Raises:
        TypeError: A field is something that JSON cannot hold.
        ValueError: The kind cannot be a file name.
        FileExistsError: The folder is a file, or holds a file ``kind.json`` that is no result.
        OSError: The folder cannot be written to; an earlier result is as it was.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp()
        >>> write_result(folder, kind="demo", fields={"ratio": float("inf"), "answers": ["a dog"]})
        >>> read_result(folder, kind="demo")
        ({'ratio': inf, 'answers': ['a dog']}, {})
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind must be letters, digits, '-' and '_', got {kind!r}.")
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "kind": kind}
    content["fields"] = _encoded(fields, "fields")
    packed = safetensors.torch.save(_plain(tensors)) if tensors else None
    stored = None if packed is None else _stored_as(kind, packed)
    content["tensors"] = stored
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path = _path(folder, kind)
    _check_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(path.parent) as is_alone:
        before = _parsed(path)
        if packed is not None and stored is not None:
            put(path.with_name(stored["file"]), packed, is_alone=is_alone)
        put(path, text.encode("utf-8", "surrogatepass"), is_alone=is_alone)
        kept = None if stored is None else stored["file"]
        for name in _replaced(path, before, is_alone=is_alone) - {kept}:
            path.with_name(name).unlink(missing_ok=True)


def read_result(
    folder: str | os.PathLike[str],
    *,
    kind: str,
    loses: str = "it has to be made again, other results stay as they are",
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields and tensors (on the CPU) that `write_result` wrote.

    Args:
        folder: Where it is.
        kind: What the result is.
        loses: What deleting the result means, for the message if it is damaged.

    Raises:
        FileNotFoundError: The folder holds no result of this kind.
        DamagedError: A file is damaged, is something else, or is of another version.
    """
    path = _path(folder, kind)
    with alone_in(path.parent):
        if not path.is_file():
            _missing(path)
        try:
            fields, stored = _decoded(path, kind)
            return fields, {} if stored is None else _read_tensors(path, **stored)
        except _Unreadable as error:
            advice = "" if error.is_newer else f" To go on, delete {str(path)!r}: {loses}."
            raise DamagedError(f"cannot read {str(error.path)!r}: {error}.{advice}") from error


# Writing ------------------------------------------------------------------------------------------


def _encoded(value: Any, where: str) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, str):
        return f"'{value}" if _NOT_FINITE.fullmatch(value) else value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        if other := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"expected texts as keys of {where}, got {other[0]!r}.")
        return {key: _encoded(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Integral):  # NumPy's integers too
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    raise TypeError(
        f"expected numbers, texts, booleans, None, lists and dicts, got {type(value).__name__} "
        f"at {where}. Convert it first; tensors go into tensors."
    )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory, as safetensors wants them."""
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()
    }


def _stored_as(kind: str, packed: bytes) -> dict[str, str]:
    """What the JSON says of tensors."""
    digest = hashlib.sha256(packed).hexdigest()
    return {"file": f"{kind}.{digest[:16]}.safetensors", "sha256": digest}


def _check_free(path: Path) -> None:
    """Refuses to replace a file that is no result: it is somebody's."""
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"cannot write into {str(folder)!r}: it is a file. Name a folder.")
    if path.exists() and not _is_ours(path):
        raise FileExistsError(
            f"will not replace {str(path)!r}, which is no result of vlm_lens. Choose another "
            "folder, or move the file away."
        )


def _is_ours(path: Path) -> bool:
    """Whether a file is a result, or the beginning of one, or nothing at all."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(len(_START))
    return _START.startswith(head) or _parsed(path).get("format") == FORMAT


def _replaced(path: Path, before: Mapping[str, Any], *, is_alone: bool) -> set[str]:
    """The files that belong to no result of this kind any more, by name.

    If somebody else may be writing, these are the tensors of the result before alone: others look
    left over, but may be about to be named.
    """
    kind, was = re.escape(path.stem), before.get("tensors")
    ours = rf"{kind}\.[0-9a-f]{{16}}\.safetensors"
    # 0.1.0 had other names for its unfinished files, and for tensors.
    left = rf"\.({kind}\.json|{kind}\.safetensors|{ours})(\.[0-9a-f]{{32}})?\.tmp"
    found = {str(was.get("file"))} if isinstance(was, dict) else set[str]()
    if is_alone:
        found |= {other.name for other in path.parent.iterdir()}
    found = {name for name in found if re.fullmatch(f"{ours}|{left}", name)}
    was_old = before.get("version") == 1 and before.get("sha256")
    return found | ({f"{path.stem}.safetensors"} if was_old else set())


# Reading ------------------------------------------------------------------------------------------


class _Unreadable(Exception):
    """Why a file cannot be read."""

    def __init__(self, path: Path, why: str, *, is_newer: bool = False) -> None:
        super().__init__(why)
        self.path, self.is_newer = path, is_newer


def _path(folder: str | os.PathLike[str], kind: str) -> Path:
    return Path(folder) / f"{kind}.json"


def _missing(path: Path) -> NoReturn:
    found = sorted(
        other.stem for other in path.parent.glob("*.json") if _parsed(other).get("format") == FORMAT
    )
    raise FileNotFoundError(
        f"there is no result {path.stem!r} in {str(path.parent)!r} (expected a file "
        f"{path.name!r}); results there: {', '.join(found) or 'none'}."
    )


def _parsed(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one if it holds something else, or is none."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_bytes().decode("utf-8", "surrogatepass"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _decoded(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, str] | None]:
    """Fields, and what is said of tensors, checked."""
    content = _parsed(path)
    if content.get("format") != FORMAT:
        raise _Unreadable(path, "it is damaged, or no result of vlm_lens")
    version = content.get("version")
    if type(version) is int and version > VERSION:
        why = f"it has format version {version}, and this is {VERSION}: update vlm_lens"
        raise _Unreadable(path, f"{why} (pip install -U vlm-lens)", is_newer=True)
    if content.get("kind") != kind:
        raise _Unreadable(
            path, f"it says that it is of kind {content.get('kind')!r}, damaged or renamed"
        )
    if type(version) is int and version < VERSION:
        why = f"an earlier vlm_lens wrote it, in format version {version}, and this is {VERSION}"
        raise _Unreadable(path, why)
    fields = content.get("fields")
    if version != VERSION or not isinstance(fields, dict):
        raise _Unreadable(path, "it is damaged")
    return {key: _value(item) for key, item in fields.items()}, _stored(path, content)


def _stored(path: Path, content: Mapping[str, Any]) -> dict[str, str] | None:
    """What a JSON says of tensors."""
    stored = content.get("tensors", "")
    if stored is None:
        return None
    if not isinstance(stored, dict) or {*stored} != {"file", "sha256"}:
        raise _Unreadable(path, "it is damaged")
    if not all(isinstance(value, str) for value in stored.values()):
        raise _Unreadable(path, "it is damaged")
    return stored


def _value(written: Any) -> Any:
    """What `_encoded` made this of."""
    if isinstance(written, dict):
        return {key: _value(item) for key, item in written.items()}
    if isinstance(written, list):
        return [_value(item) for item in written]
    if isinstance(written, str) and _NOT_FINITE.fullmatch(written):
        return written[1:] if written.startswith("'") else float(written)
    return written


def _read_tensors(json_path: Path, *, file: str, sha256: str) -> dict[str, Tensor]:
    path = json_path.with_name(Path(file).name)
    if not path.is_file():
        raise _Unreadable(path, "it is missing: keep it in one folder with its .json file")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _Unreadable(path, "it is damaged, or from another result than the .json file")
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise _Unreadable(path, f"it is no safetensors file ({error})") from error


def check_belongs(found: Mapping[str, Any], to: Mapping[str, Any], *, folder: object) -> None:
    """Refuses a checkpoint of something else.

    Args:
        found: What the checkpoint says it belongs to.
        to: What it has to belong to, name by name.
        folder: Where it is, for the message.

    Raises:
        ValueError: A name has another value.

    Example:
        >>> check_belongs({"seed": 1}, {"seed": 1}, folder="run")
    """
    different = [name for name in to if found.get(name) != to[name]]
    if different:
        name = different[0]
        others = f" (in all, {len(different)} differ)" if len(different) > 1 else ""
        raise ValueError(
            f"the checkpoint in {os.fspath(str(folder))!r} belongs to another run: its {name} is "
            f"{_short(found.get(name))}, but now it is {_short(to[name])}{others}. Name another "
            "folder, or delete this one to start anew."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

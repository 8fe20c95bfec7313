"""Results on disk: a folder with readable JSON, and safetensors where there are tensors.

Neither format can run code when it is read.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vlm_lens.loading import BUNDLED, bundled_path
from vlm_lens.versions import versions
from vlm_lens.whole_file import replace_file

FORMAT = "vlm_lens.result"
VERSION = 1

_KIND = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_NOT_FINITE = re.compile(r"'*(inf|-inf|nan)")


def write_result(
    folder: str | os.PathLike[str],
    *,
    kind: str,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes ``kind.json``, and ``kind.safetensors`` if there are tensors, into a folder.

    Whatever else is in the folder stays as it is. An earlier result of the same kind is replaced.
    Infinite values and NaN are written as the texts "inf", "-inf" and "nan", which JSON allows (a
    text that says just that gets an apostrophe in front).

    Args:
        folder: Is made if there is none.
        kind: What the result is, e.g. "critical"; letters, digits, "-" and "_".
        fields: Numbers, texts, booleans, None, and lists and dicts of them. `read_result` returns
            the same values, tuples as lists.
        tensors: Of any shape and dtype, by name.

    Raises:
        TypeError: A field is something that JSON cannot hold.
        ValueError: The kind cannot be a file name.
        FileExistsError: The folder is a file, or holds a file of that name that is no result.
        OSError: The folder cannot be written to.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = mkdtemp()
        >>> write_result(folder, kind="demo", fields={"ratio": float("inf"), "answers": ["a dog"]})
        >>> read_result(folder, kind="demo")
        ({'ratio': inf, 'answers': ['a dog']}, {})
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind must be letters, digits, '-' and '_', got {kind!r}.")
    content = {"format": FORMAT, "version": VERSION, "kind": kind}
    content["fields"] = _encoded(fields, "fields")
    packed = safetensors.torch.save(_plain(tensors)) if tensors else None
    content["sha256"] = None if packed is None else hashlib.sha256(packed).hexdigest()
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    paths = _paths(folder, kind)
    _check_free(*paths)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    if packed is not None:
        replace_file(paths[1], packed)
    replace_file(paths[0], text.encode("utf-8", "surrogatepass"))
    if packed is None:
        paths[1].unlink(missing_ok=True)  # of an earlier result, as _check_free made sure


def read_result(
    folder: str | os.PathLike[str], *, kind: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields and tensors (on the CPU) that `write_result` wrote.

    Raises:
        FileNotFoundError: The folder holds no result of this kind.
        ValueError: A file is damaged, is something else, or is from a newer vlm_lens.
    """
    json_path, tensors_path = _paths(folder, kind)
    if not json_path.is_file():
        _missing(json_path)
    fields, digest = _decoded(json_path, kind)
    return fields, {} if digest is None else _read_tensors(tensors_path, digest)


def provenance(model: Any) -> dict[str, Any]:
    """What a result depends on besides its parameters, ready for `write_result`.

    Args:
        model: A HookedVLM, a TransformerBridge or a Hugging Face model.

    Returns:
        The model's name, revision (None if it is not from the hub), class, dtype and device, the
        versions of Python and the libraries, and the date (UTC).

    Example:
        >>> from vlm_lens import HookedVLM
        >>> found = provenance(HookedVLM.from_pretrained("shapes-llava"))
        >>> found["model"], found["class"], found["dtype"]
        ('shapes-llava', 'LlavaForConditionalGeneration', 'float32')
    """
    hf_model = next(
        (getattr(model, name) for name in ("hf_model", "original_model") if hasattr(model, name)),
        model,
    )
    name = str(hf_model.name_or_path)
    parameter = next(hf_model.parameters())
    return {
        "model": BUNDLED if name == str(bundled_path()) else name,
        "revision": getattr(hf_model.config, "_commit_hash", None),
        "class": type(hf_model).__name__,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


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


def _check_free(json_path: Path, tensors_path: Path) -> None:
    """Refuses to replace files that are no result: they are somebody's."""
    folder = json_path.parent
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"cannot write into {str(folder)!r}: it is a file. Name a folder.")
    ours = json_path.is_file() and _parsed(json_path).get("format") == FORMAT
    for path in (json_path, tensors_path):
        if path.exists() and not ours:
            raise FileExistsError(
                f"will not replace {str(path)!r}, which is no result of vlm_lens. Choose another "
                "folder, or move the file away."
            )


# Reading ------------------------------------------------------------------------------------------


def _paths(folder: str | os.PathLike[str], kind: str) -> tuple[Path, Path]:
    return Path(folder) / f"{kind}.json", Path(folder) / f"{kind}.safetensors"


def _missing(path: Path) -> NoReturn:
    found = sorted(
        other.stem for other in path.parent.glob("*.json") if _parsed(other).get("format") == FORMAT
    )
    raise FileNotFoundError(
        f"there is no result {path.stem!r} in {str(path.parent)!r} (expected a file "
        f"{path.name!r}); results there: {', '.join(found) or 'none'}."
    )


def _parsed(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one if it holds something else."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _decoded(path: Path, kind: str) -> tuple[dict[str, Any], str | None]:
    """Fields and the tensors' checksum, checked."""
    content = _parsed(path)
    if content.get("format") != FORMAT:
        _refuse(path, "it is damaged, or no result of vlm_lens")
    version = content.get("version")
    if version != VERSION:
        newer = type(version) is int and version > VERSION
        advice = "update vlm_lens (pip install -U vlm-lens)" if newer else "it is damaged"
        _refuse(path, f"it has format version {version!r}, and this is {VERSION}: {advice}")
    if content.get("kind") != kind:
        _refuse(path, f"it says that it is of kind {content.get('kind')!r}: was it renamed?")
    fields, digest = content.get("fields"), content.get("sha256", "")
    if not isinstance(fields, dict) or not isinstance(digest, str | None):
        _refuse(path, "it is damaged")
    return {key: _value(item) for key, item in fields.items()}, digest


def _value(written: Any) -> Any:
    """What `_encoded` made this of."""
    if isinstance(written, dict):
        return {key: _value(item) for key, item in written.items()}
    if isinstance(written, list):
        return [_value(item) for item in written]
    if isinstance(written, str) and _NOT_FINITE.fullmatch(written):
        return written[1:] if written.startswith("'") else float(written)
    return written


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    if not path.is_file():
        _refuse(path, "it is missing: keep it in one folder with its .json file")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        _refuse(path, "it is damaged, or from another result than the .json file beside it")
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        _refuse(path, f"it is no safetensors file ({error})")


def _refuse(path: Path, why: str) -> NoReturn:
    raise ValueError(f"cannot read {str(path)!r}: {why}.")


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

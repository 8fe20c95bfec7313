"""What a reducer is, in a text by which a checkpoint knows its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType
from typing import Any

from torch import Tensor


def fingerprint(value: Any) -> str:
    """A checksum of a value, which is the same in another process.

    Dataclasses count with their fields, functions with their code and what they close over,
    tensors with their entries, and everything else as it is written.

    Example:
        >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
        False
    """
    return hashlib.sha256(_told(value).encode()).hexdigest()[:32]


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        entries = hashlib.sha256(value.detach().cpu().contiguous().double().numpy().tobytes())
        return f"tensor {tuple(value.shape)} {value.dtype} {entries.hexdigest()}"
    if isinstance(value, partial):
        return _told(["partial", value.func, value.args, value.keywords])
    if isinstance(value, FunctionType):
        inside = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = [value.__defaults__, value.__kwdefaults__]
        return f"{value.__module__}.{value.__qualname__} {_code(value.__code__)} " + _told(
            [inside, defaults]
        )
    if is_dataclass(value) and not isinstance(value, type):
        own = {one.name: getattr(value, one.name) for one in fields(value)}
        return f"{type(value).__module__}.{type(value).__qualname__} {_told(own)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_told(k)}: {_told(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_told, value)) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_told, value))) + "}"
    return repr(value)


def _code(code: Any) -> str:
    """A function's instructions, and the constants in them."""
    constants = [_code(c) if hasattr(c, "co_code") else _told(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code, constants, code.co_names)).encode()).hexdigest()

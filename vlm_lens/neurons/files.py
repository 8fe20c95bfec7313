"""Neuron sets as readable JSON files."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vlm_lens.neurons.neuron import Neuron

FORMAT = "vlm_lens.NeuronSet"
VERSION = 1

T = TypeVar("T")


def write(
    path: str | os.PathLike[str], neurons: Iterable[Neuron], sizes: Mapping[str, int]
) -> None:
    """Writes neurons and sizes; see `NeuronSet.save`."""
    path = Path(path)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "sizes": dict(sizes),
        "neurons": [str(neuron) for neuron in neurons],
    }
    # Replaced in one step, so a reader (or a crash) never meets half a file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: str | os.PathLike[str], build: Callable[..., T]) -> T:
    """Reads what `write` wrote, as ``build(neurons, sizes=sizes)``; see `NeuronSet.load`."""
    raw = Path(path).read_bytes()
    try:
        neurons, sizes = _decoded(json.loads(raw))
        return build(neurons, sizes=sizes)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not a neuron set that NeuronSet.load can read: {error} "
            "Write it with NeuronSet.save."
        ) from error


def _decoded(content: Any) -> tuple[list[Neuron], dict[str, int]]:
    found = content if isinstance(content, dict) else {}
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"expected an object of format {FORMAT!r} and version {VERSION}.")
    sizes, written = found.get("sizes"), found.get("neurons")
    if not isinstance(sizes, dict) or not all(type(size) is int for size in sizes.values()):
        raise ValueError("expected sizes to map hook names to integers.")
    if not isinstance(written, list) or not all(isinstance(text, str) for text in written):
        raise ValueError("expected neurons to be a list of strings.")
    return [Neuron.parse(text) for text in written], sizes

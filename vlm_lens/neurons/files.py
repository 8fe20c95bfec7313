"""Neuron sets as readable JSON files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vlm_lens.json_text import parse_json
from vlm_lens.neurons.neuron import Neuron
from vlm_lens.whole_file import replace_file

FORMAT = "vlm_lens.NeuronSet"
VERSION = 1

T = TypeVar("T")


def write(
    path: str | os.PathLike[str], neurons: Iterable[Neuron], sizes: Mapping[str, int]
) -> None:
    """Writes neurons and sizes; see `NeuronSet.save`."""
    content = {"format": FORMAT, "version": VERSION, **encoded(neurons, sizes)}
    replace_file(Path(path), (json.dumps(content, indent=1) + "\n").encode())


def read(path: str | os.PathLike[str], build: Callable[..., T]) -> T:
    """Reads what `write` wrote, as ``build(neurons, sizes=sizes)``; see `NeuronSet.load`."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"expected the file of a neuron set, but {str(path)!r} is a folder")
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected the file of a neuron set, but there is no {str(path)!r}")
    raw = Path(path).read_bytes()
    try:
        neurons, sizes = decoded(_checked(parse_json(raw)))
        return build(neurons, sizes=sizes)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{os.fspath(path)!r} is not a neuron set that NeuronSet.load can read: "
            f"{str(error).rstrip('.')}. Write it with NeuronSet.save."
        ) from error


def encoded(neurons: Iterable[Neuron], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Neurons and sizes as JSON can hold them."""
    return {"sizes": dict(sizes), "neurons": [str(neuron) for neuron in neurons]}


def decoded(content: Any) -> tuple[list[Neuron], dict[str, int]]:
    """Neurons and sizes that `encoded` wrote; ValueError if they are something else."""
    found = content if isinstance(content, dict) else {}
    sizes, written = found.get("sizes"), found.get("neurons")
    if not isinstance(sizes, dict) or not all(type(size) is int for size in sizes.values()):
        raise ValueError("expected sizes to map hook names to integers.")
    if not isinstance(written, list) or not all(isinstance(text, str) for text in written):
        raise ValueError("expected neurons to be a list of strings.")
    return [Neuron.parse(text) for text in written], sizes


def _checked(content: Any) -> Any:
    found = content if isinstance(content, dict) else {}
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"expected an object of format {FORMAT!r} and version {VERSION}.")
    return content

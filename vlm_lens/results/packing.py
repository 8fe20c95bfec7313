"""Values as JSON and tensors, and back: what they are is read from the types that are declared."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.neurons.files import decoded, encoded


def packed(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """A value as `write_result` takes it.

    Args:
        value: Numbers, texts, tensors, arrays, frames, neurons, and lists, tuples, mappings and
            dataclasses of them.
        where: Its place, which its tensors are named for.
        tensors: Where they go.

    Example:
        >>> tensors = {}
        >>> packed({"k": 3, "score": torch.ones(2)}, "best", tensors), list(tensors)
        ({'k': 3, 'score': {'tensor': 'best/score'}}, ['best/score'])
    """
    match value:
        case np.ndarray():
            return packed(torch.from_numpy(value.copy()), where, tensors)
        case Tensor():
            tensors[where] = value
            return {"tensor": where}
        case NeuronSet():
            return encoded(value, value.sizes)
        case Neuron():
            return str(value)
        case pd.DataFrame():
            return _packed_frame(value)
        case Mapping() if not is_dataclass(value):
            return _packed_mapping(value, where, tensors)
        case list() | tuple():
            return [packed(item, _inside(where, i), tensors) for i, item in enumerate(value)]
    if is_dataclass(value):
        return {
            one.name: packed(getattr(value, one.name), _inside(where, one.name), tensors)
            for one in fields(value)
        }
    return value


def packed_whole(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """A value as `packed` makes it, and its tensors."""
    tensors: dict[str, Tensor] = {}
    return packed(value, "", tensors), tensors


def unpacked(declared: Any, written: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `packed` made this of.

    Args:
        declared: The type of the value.
        written: What was made of it.
        tensors: All tensors, by place.

    Raises:
        AttributeError, IndexError, KeyError, TypeError, ValueError: It is something else.

    Example:
        >>> unpacked(dict[str, tuple[int, ...]], {"layers": [3, 4]}, {})
        {'layers': (3, 4)}
    """
    arms = _arms(declared)
    if type(None) in arms:
        if written is None:
            return None
        declared = next(arm for arm in arms if arm is not type(None)) if len(arms) == 2 else Any
    origin, inside = get_origin(declared), get_args(declared)
    array = getattr(declared, "array_type", declared)
    if array in (Tensor, np.ndarray):
        return _unpacked_tensor(declared, written, tensors)
    if declared is NeuronSet:
        neurons, sizes = decoded(written)
        return NeuronSet(neurons, sizes=sizes)
    if declared is Neuron:
        return Neuron.parse(written)
    if declared is pd.DataFrame:
        frame = pd.DataFrame(written["rows"], columns=list(written["columns"]), dtype=object)
        return frame.astype(written["columns"])
    if is_dataclass(declared):
        return built(declared, written, tensors)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        of_key, of_value = inside
        is_object = of_key is str or isinstance(written, dict)
        pairs = _expect(dict, written).items() if is_object else _expect(list, written)
        return {
            unpacked(of_key, key, tensors): unpacked(of_value, item, tensors) for key, item in pairs
        }
    if origin in (list, tuple):
        one_type = origin is list or inside[1:] == (...,)
        kinds = [inside[0]] * len(_expect(list, written)) if one_type else inside
        return origin(
            unpacked(kind, item, tensors) for kind, item in zip(kinds, written, strict=True)
        )
    if declared is float:
        return float(_expect((int, float), written))
    return _expect(declared, written) if declared in (bool, int, str) else written


def built(declared: Any, written: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """A dataclass from its packed fields; those that are missing have their defaults."""
    hints = get_type_hints(declared)
    known = {one.name for one in fields(declared)}
    if other := sorted(set(_expect(dict, written)) - known):
        raise TypeError(f"{declared.__name__} has no {other[0]!r}")
    return declared(
        **{name: unpacked(hints[name], item, tensors) for name, item in written.items()}
    )


def _packed_mapping(value: Mapping[Any, Any], where: str, tensors: dict[str, Tensor]) -> Any:
    """A mapping; where its keys are no texts, a list of pairs."""
    items = [
        (packed(key, "", {}), packed(item, _inside(where, key), tensors))
        for key, item in value.items()
    ]
    return dict(items) if all(isinstance(key, str) for key in value) else [list(i) for i in items]


def _packed_frame(frame: pd.DataFrame) -> dict[str, Any]:
    columns = {str(name): str(dtype) for name, dtype in frame.dtypes.items()}
    plain = frame.astype(object).where(frame.notna(), None)
    return {"columns": columns, "rows": [[_plain(v) for v in row] for row in plain.values.tolist()]}


def _expect(kind: Any, written: Any) -> Any:
    if not isinstance(written, kind):
        raise TypeError(f"expected {kind}, got {written!r}")
    return written


def _unpacked_tensor(declared: Any, written: Any, tensors: Mapping[str, Tensor]) -> Any:
    tensor: Any = tensors[written["tensor"]]
    if getattr(declared, "array_type", declared) is np.ndarray:
        tensor = tensor.numpy()
    if not isinstance(tensor, declared):
        raise TypeError(f"{written['tensor']} has shape {tuple(tensor.shape)}, {tensor.dtype}")
    return tensor


def _arms(declared: Any) -> tuple[Any, ...]:
    is_union = get_origin(declared) in (Union, types.UnionType)
    return get_args(declared) if is_union else (declared,)


def _inside(where: str, name: Any) -> str:
    key = ",".join(map(str, name)) if isinstance(name, tuple) else str(name)
    return f"{where}/{key}" if where else key


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python."""
    return value.item() if hasattr(value, "item") else value

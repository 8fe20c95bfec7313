"""Checks and errors that the modules about neurons share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real

from torch import Tensor


def finite_number(what: str, value: object) -> float:
    """``value`` as a float; ValueError, naming ``what``, unless it is a finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, got {value!r}.")
    return float(value)


def kind_of(value: object) -> str:
    """What a refused value is, for messages."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def check_range(indices: Mapping[str, Iterable[int]], sizes: Mapping[str, int]) -> None:
    """Raises IndexError if a neuron does not exist at a hook point of known size."""
    for name, size in sizes.items():
        if name in indices and (largest := max(indices[name])) >= size:
            raise IndexError(
                f"neuron {name}[{largest}] does not exist: {name!r} has {size} neurons, 0 to "
                f"{size - 1}. Check that the neurons come from this model and this site."
            )


def check_same_sizes(mine: Mapping[str, int], others: Mapping[str, int]) -> None:
    """Raises ValueError if a hook point has one size here and another there."""
    for name, size in mine.items():
        if others.get(name, size) != size:
            raise ValueError(
                f"{name!r} has {size} neurons in this set but {others[name]} elsewhere: they come "
                "from different models. Choose the neurons anew for this model."
            )

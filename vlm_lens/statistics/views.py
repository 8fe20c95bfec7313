"""One statistic of all neurons: by hook name, and then by token type."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from vlm_lens.statistics.moments import Moments

Value = TypeVar("Value")


class ByType(Mapping[str, Value], Generic[Value]):
    """One statistic of one hook point, by token type; types that no position has are missing.

    Args:
        name: The hook point.
        every: The types that were asked for.
        found: What there is.
        read: Reads the statistic off it.
    """

    def __init__(
        self,
        name: str,
        every: Sequence[str],
        found: Mapping[str, Moments],
        read: Callable[[Moments], Value],
    ) -> None:
        self._name, self._every, self._found, self._read = name, every, found, read

    def __getitem__(self, token_type: str) -> Value:
        if token_type in self._found:
            return self._read(self._found[token_type])
        why = "no position there is of this type"
        if token_type not in self._every:
            why = f"it was not asked for: {list(self._every)} were"
        raise KeyError(f"no statistics of {token_type!r} at {self._name!r}: {why}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class ByName(Mapping[str, ByType[Value]], Generic[Value]):
    """One statistic, by hook name.

    Args:
        names: The hook points.
        every: The types that were asked for.
        moments: All there is of a hook point, by token type.
        read: Reads the statistic off it.
    """

    def __init__(
        self,
        names: Sequence[str],
        every: Sequence[str],
        moments: Callable[[str], Mapping[str, Moments]],
        read: Callable[[Moments], Value],
    ) -> None:
        self._names, self._every, self._moments, self._read = names, every, moments, read

    def __getitem__(self, name: str) -> ByType[Value]:
        if name not in self._names:
            raise KeyError(f"no statistics of {name!r}: there are those of {list(self._names)}")
        return ByType(name, self._every, self._moments(name), self._read)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

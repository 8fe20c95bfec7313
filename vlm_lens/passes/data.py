"""Data sets of samples, or of prepared inputs, cut into what runs at once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_lens.data import Sample
from vlm_lens.data.digest import digest_of_samples
from vlm_lens.data.sample import ONE_ALONE
from vlm_lens.inputs import Inputs

Item = Sample | Inputs
"""One prompt, or what `HookedVLM.prepare` returns for one or several (sounds, for example)."""

Data = Inputs | Iterable[Item] | Mapping[str, Inputs | Iterable[Item]]
"""One data set, or several by name."""

By = Callable[[Sample], str]
"""Says which group a sample is of; by default its data set."""

ONE = "data"
"""The name of a data set that came alone."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some prompts that run as one batch.

    Attributes:
        dataset: The name of their data set.
        group: The name of their group, which they are added up in.
        numbers: The numbers of the prompts in the data set.
        content: Samples, or inputs that are prepared.
    """

    dataset: str
    group: str
    numbers: list[int]
    content: list[Sample] | Inputs

    def __len__(self) -> int:
        return len(self.numbers)

    def singles(self) -> list[Chunk]:
        """One chunk for each sample; inputs that are prepared stay together."""
        if isinstance(self.content, Inputs):
            return [self]
        return [
            Chunk(self.dataset, self.group, [number], [sample])
            for number, sample in zip(self.numbers, self.content, strict=True)
        ]

    def chained(self, digest: str) -> str:
        """A checksum of everything before, and of what this asks and shows."""
        found = hashlib.sha256(repr((digest, self.dataset, self.group, self.numbers)).encode())
        if not isinstance(self.content, Inputs):
            found.update(digest_of_samples(self.content).encode())
            return found.hexdigest()
        for key, tensor in self.content.items():
            found.update(repr((key, tuple(tensor.shape), str(tensor.dtype))).encode())
            found.update(tensor.detach().cpu().double().numpy().tobytes())
        return found.hexdigest()


def named(data: Data) -> dict[str, Iterable[Item]]:
    """Data sets by name; one that came alone is called `ONE`.

    Raises:
        ValueError: There is none, or one is empty.
        TypeError: Something in it is neither a sample nor prepared inputs.

    Example:
        >>> list(named([Sample(images=[], text="what color ?")]))
        ['data']
    """
    is_one = isinstance(data, Inputs) or not isinstance(data, Mapping)
    by_name: Any = {ONE: data} if is_one else data
    if not by_name:
        raise ValueError("expected at least one data set, got none")
    datasets: dict[str, Iterable[Item]] = {}
    for name, items in by_name.items():
        if isinstance(items, Sample):
            raise TypeError(ONE_ALONE)
        datasets[name] = [items] if isinstance(items, Inputs) else items
        if isinstance(items, Sequence):
            for item in items:
                _check_item(item, name)
            if not items:
                raise ValueError(f"expected at least one sample in data set {name!r}, got none")
    return datasets


def _check_item(item: Any, dataset: str) -> None:
    if not isinstance(item, Sample | Inputs):
        raise TypeError(
            f"expected samples or prepared inputs in data set {dataset!r}, got "
            f"{type(item).__name__}: use Sample(images=..., text=...) or model.prepare(...)"
        )


@dataclass
class _Waiting:
    """Samples of a group that do not fill a batch yet."""

    numbers: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def chunks_of(
    datasets: Mapping[str, Iterable[Item]],
    batch_size: int,
    *,
    by: By | None = None,
    first: int = 0,
    only: Collection[int] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Chunk]:
    """All prompts: at most `batch_size` samples of one group at once; inputs stay as they are.

    Args:
        datasets: By name; they may be streamed.
        batch_size: How many samples run at once.
        by: Says which group a sample is of.
        first: The number of each data set's first prompt.
        only: The numbers of the prompts that count; by default all do.
        shard: ``(i, n)``: the chunks i, i + n, i + 2n, ...

    Example:
        >>> samples = [Sample(images=[], text="what color ?")] * 5
        >>> [chunk.numbers for chunk in chunks_of({"demo": samples}, 2)]
        [[0, 1], [2, 3], [4]]
    """
    if batch_size < 1:
        raise ValueError(f"expected batch_size of at least 1, got {batch_size}")
    part, n = shard
    for i, chunk in enumerate(_every_chunk(datasets, batch_size, by, first, only)):
        if i % n == part:
            yield chunk


def _every_chunk(
    datasets: Mapping[str, Iterable[Item]],
    batch_size: int,
    by: By | None,
    first: int,
    only: Collection[int] | None,
) -> Iterator[Chunk]:
    for dataset, items in datasets.items():
        waiting: dict[str, _Waiting] = {}
        number = first
        for item in items:
            _check_item(item, dataset)
            if only is not None and number not in only:
                number += 1
                continue
            if isinstance(item, Inputs):
                yield from _rest(dataset, waiting)
                n_prompts = len(item.token_map)
                yield Chunk(dataset, dataset, [*range(number, number + n_prompts)], item)
                number += n_prompts
                continue
            group = dataset if by is None else by(item)
            some = waiting.setdefault(group, _Waiting())
            some.numbers.append(number)
            some.samples.append(item)
            number += 1
            if len(some.samples) == batch_size:
                yield Chunk(dataset, group, some.numbers, some.samples)
                del waiting[group]
        yield from _rest(dataset, waiting)


def _rest(dataset: str, waiting: dict[str, _Waiting]) -> Iterator[Chunk]:
    for group, some in waiting.items():
        yield Chunk(dataset, group, some.numbers, some.samples)
    waiting.clear()

"""Data sets of samples, or of prepared inputs, batch by batch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lens.data import Sample
from vlm_lens.data.digest import digest_of_samples
from vlm_lens.data.sample import ONE_ALONE
from vlm_lens.inputs import Inputs
from vlm_lens.inputs.samples import why_refused
from vlm_lens.model import HookedVLM

Item = Sample | Inputs
"""One prompt, or what `HookedVLM.prepare` returns for one or several (sounds, for example)."""

Datasets = Inputs | Sequence[Item] | Mapping[str, Inputs | Sequence[Item]]
"""One data set, or several by name."""

ONE = "data"
"""The name of a data set that came alone."""

REFUSED = (OSError, TypeError, ValueError)
"""What `HookedVLM.prepare` raises for a sample that it cannot prepare."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some prompts of one data set that run as one batch.

    Attributes:
        dataset: Its name.
        first: The number of the first prompt in the data set.
        content: Samples, or inputs that are prepared.
    """

    dataset: str
    first: int
    content: list[Sample] | Inputs

    def __len__(self) -> int:
        return n_prompts(self.content)

    def prepare(self, model: HookedVLM) -> Inputs:
        """The inputs, on the model's device; raises whatever `HookedVLM.prepare` raises."""
        if isinstance(self.content, Inputs):
            return self.content.to(model.cfg.device)
        images = [sample.images for sample in self.content]
        text = [sample.text for sample in self.content]
        return model.prepare(text=text, images=images if any(images) else None)

    def singles(self) -> list[Chunk]:
        """One chunk for each sample; inputs that are prepared stay together."""
        if isinstance(self.content, Inputs):
            return [self]
        return [
            Chunk(self.dataset, self.first + i, [sample]) for i, sample in enumerate(self.content)
        ]


def n_prompts(content: Sequence[Item] | Inputs) -> int:
    """How many prompts there are in a data set or a part of one."""
    if isinstance(content, Inputs):
        return len(content.token_map)
    return sum(len(item.token_map) if isinstance(item, Inputs) else 1 for item in content)


def named(datasets: Datasets) -> dict[str, list[Item]]:
    """Data sets by name; one that came alone is called `ONE`.

    Raises:
        ValueError: There is none, or one is empty.
        TypeError: Something in it is neither a sample nor prepared inputs.

    Example:
        >>> list(named([Sample(images=[], text="what color ?")]))
        ['data']
    """
    by_name: Mapping[str, Any] = {ONE: datasets}
    if isinstance(datasets, Mapping) and not isinstance(datasets, Inputs):
        by_name = datasets
    if not by_name:
        raise ValueError("expected at least one data set, got none")
    found: dict[str, list[Item]] = {}
    for name, items in by_name.items():
        if isinstance(items, Sample):
            raise TypeError(ONE_ALONE)
        found[name] = [items] if isinstance(items, Inputs) else list(items)
        wrong = [item for item in found[name] if not isinstance(item, Sample | Inputs)]
        if wrong:
            raise TypeError(
                f"expected samples or prepared inputs in data set {name!r}, got "
                f"{type(wrong[0]).__name__}: use Sample(images=..., text=...) or model.prepare(...)"
            )
        if not n_prompts(found[name]):
            raise ValueError(f"expected at least one sample in data set {name!r}, got none")
    return found


def chunks_of(datasets: Mapping[str, Sequence[Item]], batch_size: int) -> list[Chunk]:
    """All prompts in order: at most `batch_size` samples at once; inputs stay as they are.

    Raises:
        ValueError: The batch size is below 1.

    Example:
        >>> samples = [Sample(images=[], text="what color ?")] * 5
        >>> [(len(chunk), chunk.first) for chunk in chunks_of({"demo": samples}, 2)]
        [(2, 0), (2, 2), (1, 4)]
    """
    if batch_size < 1:
        raise ValueError(f"expected batch_size of at least 1, got {batch_size}")
    chunks: list[Chunk] = []
    for name, items in datasets.items():
        waiting: list[Sample] = []
        first = 0
        for item in items:
            if isinstance(item, Sample):
                waiting.append(item)
            if waiting and (isinstance(item, Inputs) or len(waiting) == batch_size):
                chunks.append(Chunk(name, first, waiting))
                first, waiting = first + len(waiting), []
            if isinstance(item, Inputs):
                chunks.append(Chunk(name, first, item))
                first += n_prompts(item)
        if waiting:
            chunks.append(Chunk(name, first, waiting))
    return chunks


def prepared(
    model: HookedVLM, chunks: Sequence[Chunk], refused: Counter[str]
) -> Iterator[tuple[Chunk, Inputs]]:
    """Prepares batches; a sample that cannot be prepared is left out.

    Args:
        model: The model.
        chunks: The batches.
        refused: Is filled with the reasons why samples are left out, and how often.
    """
    for chunk in chunks:
        try:
            inputs = chunk.prepare(model)
        except REFUSED as error:
            if isinstance(chunk.content, Inputs):
                raise
            if len(chunk) == 1:
                refused[f"{chunk.dataset!r}: {why_refused(error)}"] += 1
            else:
                yield from prepared(model, chunk.singles(), refused)
            continue
        yield chunk, inputs


def digest(datasets: Mapping[str, Sequence[Item]]) -> str:
    """A checksum of everything that data sets ask and show."""
    found = hashlib.sha256()
    for name, items in datasets.items():
        found.update(repr((name, len(items))).encode())
        for item in items:
            if isinstance(item, Sample):
                found.update(digest_of_samples([item]).encode())
                continue
            for key, tensor in item.items():
                found.update(repr((key, tuple(tensor.shape), str(tensor.dtype))).encode())
                found.update(tensor.detach().cpu().double().numpy().tobytes())
    return found.hexdigest()

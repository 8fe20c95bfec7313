"""What is kept does not grow with the number of samples."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from weakref import WeakSet

import pytest
import torch
from PIL import Image

from tests.statistics.slow import built, samples_of
from vlm_lens.data import Sample
from vlm_lens.statistics import collect


class Kept(Image.Image):
    """A picture that a set can hold."""

    __hash__ = object.__hash__

    def __init__(self, image: Image.Image) -> None:
        super().__init__()
        self.__dict__.update(image.copy().__dict__)


def tensors() -> tuple[int, int]:
    """How many tensors there are, and how many bytes they hold."""
    gc.collect()
    kept = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len(kept), sum(tensor.numel() * tensor.element_size() for tensor in kept)


@pytest.mark.full
def test_neither_tensors_nor_samples_pile_up() -> None:
    first, *others = samples_of("llava")
    alive: WeakSet[Kept] = WeakSet()
    seen, most_alive = {}, 0

    def samples() -> Iterator[Sample]:
        for i in range(240):
            sample = (first, *others)[i % 5]
            images = [Kept(image) for image in sample.images]
            alive.update(images)
            yield Sample(images=images, text=sample.text)

    def look(done: int, total: int | None) -> None:
        nonlocal most_alive
        most_alive = max(most_alive, len(alive))
        if done in (20, 60):
            seen[done] = tensors()

    collect(
        built("llava", torch.float32),
        samples(),
        sites="blocks.*.mlp.hook_act",
        top_k=4,
        attention=True,
        batch_size=4,
        on_batch=look,
    )
    assert most_alive < 20
    # What waits to be compared is at most 68 samples more.
    room = 3 * 64 * 68 * (8 + 4)
    assert seen[60][1] - seen[20][1] <= room
    assert seen[60][0] - seen[20][0] <= 2 * 3 * 17

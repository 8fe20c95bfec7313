"""Several processes that do one piece of work together, as ``torchrun`` starts them.

Each takes its share of the batches, all know all results in the order of one process, and so all
end identical, and identical to one process alone. The first one reads and writes for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")
R = TypeVar("R")

_PATIENCE = timedelta(hours=12)
"""So long a rank waits for the others, such as for the first one to read a large data set."""


def rank() -> int:
    """Which of the processes this is; 0 where it is alone.

    Example:
        >>> rank(), n_ranks(), is_first()
        (0, 1, True)
    """
    return distributed.get_rank() if n_ranks() > 1 else 0


def n_ranks() -> int:
    """How many processes work together."""
    is_several = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_several else 1


def is_first() -> bool:
    """Whether this process is the one that reads and writes for all."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that ``torchrun`` has started.

    On GPUs each process has one of its own, which "cuda" then means.
    """
    has_gpus = torch.cuda.is_available()
    if has_gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def shared(make: Callable[[], T]) -> T:
    """What the first process makes, for all; if it raises something, all do.

    Args:
        make: Is called by the first process alone. What it gives has to be picklable.
    """
    if n_ranks() == 1:
        return make()
    sent: list[tuple[bool, object]] = [(False, None)]
    if is_first():
        try:
            sent = [(True, make())]
        except Exception as error:  # noqa: BLE001  whatever it is, no process may wait for it
            sent = [(False, error)]
    distributed.broadcast_object_list(sent, src=0)
    is_made, found = sent[0]
    if not is_made:
        assert isinstance(found, Exception)
        raise found
    return found  # pyright: ignore[reportReturnType]


def read_once(items: Iterator[T]) -> Iterator[T]:
    """The items of a stream, which the first process alone reads, and hands to all."""
    while True:
        found = shared(lambda: list(islice(items, 1)))
        if not found:
            return
        yield found[0]


def in_turn(work: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Each item with what is made of it, in order; processes take items in turn, and all get all.

    Args:
        work: What it gives has to be picklable, and on the CPU, where there are several processes.
        items: The same in all processes.

    Example:
        >>> list(in_turn(abs, [-1, -2]))
        [(-1, 1), (-2, 2)]
    """
    if n_ranks() == 1:
        for item in items:
            yield item, work(item)
        return
    left = iter(items)
    while turn := list(islice(left, n_ranks())):
        mine = work(turn[rank()]) if rank() < len(turn) else None
        made: list[R] = [None] * n_ranks()  # pyright: ignore[reportAssignmentType]
        distributed.all_gather_object(made, mine)
        yield from zip(turn, made, strict=False)

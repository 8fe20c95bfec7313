"""A command as one of several processes, as ``torchrun`` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


def are_several() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def together() -> Iterator[None]:
    """Joins the processes that were started, of which the first one speaks for all.

    What ends another one is still told, by Python and by ``torchrun``.
    """
    if not are_several():
        yield
        return
    from vlm_lens.ranks import is_first, joined

    with joined():
        if is_first():
            yield
            return
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield

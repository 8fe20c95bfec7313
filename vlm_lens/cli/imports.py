"""Large libraries: a little faster to import, and to leave."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Collects no garbage meanwhile, nor at the end of the process: that takes two seconds of ten.

    Imports make a million objects and hardly any garbage, but each collection looks at all of them,
    over and over again, and once more when the process ends and everything goes anyway.
    """
    was_on = gc.isenabled()
    gc.disable()
    atexit.unregister(gc.freeze)  # once is enough, however often this is called
    atexit.register(gc.freeze)
    try:
        yield
    finally:
        if was_on:
            gc.enable()

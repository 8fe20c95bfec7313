"""One model, many threads: they run it one after the other."""

from __future__ import annotations

import threading
import warnings
from types import TracebackType
from weakref import WeakKeyDictionary

from torch import nn

PATIENCE = 10.0
"""Seconds after which a waiting thread says what it waits for."""


class Turns:
    """A lock that the thread which holds it may enter again.

    Hooks are in the model itself, so whoever ran it while another thread's hooks are set would get
    that thread's edits, and be in its cache. A block of hooks is therefore one thread's turn. It
    may end in another thread than it began in, as generators of a web server do; but only the
    thread that it began in runs the model inside of it.

    Example:
        >>> turns = Turns()
        >>> with turns, turns:
        ...     pass
    """

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._holder: threading.Thread | None = None
        self._depth = 0

    def __enter__(self) -> Turns:
        me, told = threading.current_thread(), False
        with self._free:
            while self._holder not in (None, me):
                _refuse_the_dead(self._holder)
                if not self._free.wait(PATIENCE) and not told:
                    told = True
                    _tell(self._holder)
            self._holder = me
            self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._free:
            self._depth -= 1
            if self._depth == 0:
                self._holder = None
                self._free.notify()


_turns: WeakKeyDictionary[nn.Module, Turns] = WeakKeyDictionary()


def turns_of(hf_model: nn.Module) -> Turns:
    """The turns of a Hugging Face model, which all that wrap it share, as they share its hooks.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> turns_of(linear) is turns_of(linear)
        True
    """
    return _turns.setdefault(hf_model, Turns())


def _refuse_the_dead(holder: threading.Thread | None) -> None:
    if holder is not None and not holder.is_alive():
        raise RuntimeError(
            f"Thread {holder.name!r} ended inside a block of hooks, which are still set. Leave the "
            "block (call its __exit__), and use `with model.hooks(...)` so that it ends by itself."
        )


def _tell(holder: threading.Thread | None) -> None:
    name = "another one" if holder is None else repr(holder.name)
    warnings.warn(
        f"This thread has waited {PATIENCE:.0f} s for thread {name}, which runs the model or is "
        "inside a block of hooks. If that thread waits for this one, open the block in the thread "
        "that runs the model.",
        RuntimeWarning,
        stacklevel=3,
    )

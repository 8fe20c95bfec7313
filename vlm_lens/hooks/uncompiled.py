"""Compiled models run uncompiled while a tap is wired into them.

`torch.compile` keeps to the hooks that a module had when it was compiled: later ones never fire.
PyTorch can be told to run what is compiled in the ordinary way for a while.
"""

from __future__ import annotations

import sys
import threading

import torch

from vlm_lens.hooks.shared import Shared


class _Uncompiled(Shared):
    """Tells PyTorch, for the whole process, while any tap of any model is wired."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def use(self) -> _Uncompiled:
        with self._lock:
            super().use()
        return self

    def remove(self) -> None:
        with self._lock:
            super().remove()

    def _put_in(self) -> None:
        self._stance = torch.compiler.set_stance("force_eager")

    def _take_out(self) -> None:
        if sys.is_finalizing():  # a block that was never left; Python imports nothing any more
            return
        self._stance.__exit__(None, None, None)


uncompiled = _Uncompiled()
"""In use as long as a tap is wired."""

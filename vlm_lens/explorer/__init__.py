"""The neuron explorer: a neuron over the image and in the words, linked both ways.

`explore` shows it in a notebook; ``explorer.to_html`` writes it as one page without a kernel. Both
run the same ES module, which asks a *source* a few questions and nothing else: the kernel answers
from the model, the page from data inside it.

Importing this package imports no widget library; `Explorer` and `explore` do when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_lens.explorer.exploring import explore
    from vlm_lens.explorer.widget import Explorer

__all__ = ["Explorer", "explore"]

_HOMES = {"Explorer": "vlm_lens.explorer.widget", "explore": "vlm_lens.explorer.exploring"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

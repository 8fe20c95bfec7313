"""Functions with some of their arguments set, for hooks in modules."""

from __future__ import annotations

from functools import partial
from typing import Any


class Bound(partial):
    """A partial that copies of a module share with it, as they share functions.

    A copy of a plain partial copies what it holds too: a tap in a layer, and with it the model.

    Example:
        >>> import copy
        >>> hook = Bound(print, "seen")
        >>> copy.deepcopy(hook) is hook
        True
    """

    def __deepcopy__(self, _memo: dict[int, Any]) -> Bound:
        return self

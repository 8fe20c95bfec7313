"""What several taps need in the model at once: it is there as long as one of them is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from vlm_lens.hooks.place import Place


class Shared(ABC):
    """Put into use for its first user, and out of use with its last one."""

    _users = 0

    def use(self) -> Any:
        """One user more, until `remove` is called."""
        if self._users == 0:
            self._put_in()
        self._users += 1
        return self

    def remove(self) -> None:
        """One user fewer."""
        self._users -= 1
        if self._users == 0:
            self._take_out()

    @abstractmethod
    def _put_in(self) -> None: ...

    @abstractmethod
    def _take_out(self) -> None: ...


class SharedAt(Shared):
    """Put into the module at a place.

    Args:
        place: Where the module is, whenever the first user comes.
    """

    module: Any
    """The module that it is in, while it is in use."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def use(self, _tap: Any = None) -> Any:
        """One user more, until `remove` is called: a `Wire` of taps."""
        if self._users == 0:
            self.module = self.place.module
        return super().use()

    @property
    def moved(self) -> bool:
        """Whether another module has taken the place of the one that it is in."""
        return self.place.module is not self.module

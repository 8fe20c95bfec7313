"""What several taps need in the model at once: it is there as long as one of them is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from vlm_lens.hooks.tap import Removable, Tap


class Shared(ABC):
    """Put into the model for its first user, and taken out with its last one."""

    _users = 0

    def use(self, _tap: Tap | None = None) -> Removable:
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

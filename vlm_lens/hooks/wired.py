"""The taps of a model that are wired into it, and what the model needs as long as there are any."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, runtime_checkable

from vlm_lens.hooks.uncompiled import uncompiled

if TYPE_CHECKING:
    from vlm_lens.hooks.step import Step


@runtime_checkable
class Rewirable(Protocol):
    """What can be wired again where it belongs."""

    @property
    def moved(self) -> bool:
        """Whether another module has taken the place of the one that it is wired into."""
        ...

    def rewire(self) -> None:
        """Wire it into the module that is at its place now."""
        ...


R = TypeVar("R", bound=Rewirable)


class WiredTaps(Generic[R]):
    """Those of a model's taps that are wired; each says so itself.

    While there is one, compiled parts of the model run uncompiled, and `step` is in use.

    Args:
        step: Notes which positions the language model runs on, for its taps to tell.

    Example:
        >>> len(WiredTaps())
        0
    """

    def __init__(self, step: Step | None = None) -> None:
        self.step = step
        self._taps: dict[R, None] = {}

    def __len__(self) -> int:
        return len(self._taps)

    def __iter__(self) -> Iterator[R]:
        return iter(self._taps)

    def add(self, tap: R) -> None:
        """One tap more: it is in the model now."""
        if not self._taps:
            uncompiled.use()
            if self.step is not None:
                self.step.use()
        self._taps[tap] = None

    def discard(self, tap: R) -> None:
        """One tap fewer."""
        del self._taps[tap]
        if not self._taps:
            uncompiled.remove()
            if self.step is not None:
                self.step.remove()

    def rewire_moved(self) -> None:
        """Wire all again, if other modules have taken the places of those that taps are in."""
        if any(tap.moved for tap in self._taps):
            for tap in self._taps:
                tap.rewire()
            if self.step is not None:
                self.step.rewire()

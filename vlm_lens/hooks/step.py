"""Which positions of a sequence the language model is running on, while taps of it are in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from vlm_lens.hooks.place import Place
from vlm_lens.hooks.shared import SharedAt


class Step(SharedAt):
    """Where the positions start that a run of the language model is over.

    While generating with a key-value cache, the model runs on a part of the sequence at a time: the
    prompt, or a chunk of it, then one position, or several that a second model has guessed.

    Args:
        place: Where the module is that runs the layers and is handed the cache.

    Attributes:
        past: How many positions are in the cache, before those of this run.
        prompt: How many positions the prompt has, while `HookedVLM.generate` runs; else None.
        chunked: Whether the prompt comes in chunks.
        guided: Whether a second prompt, which guides the first one, is run too.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._handle: RemovableHandle | None = None
        self.past = 0
        self.prompt: int | None = None
        self.chunked = self.guided = False

    @contextmanager
    def generating(self, prompt: int, *, chunked: bool, guided: bool) -> Iterator[None]:
        """In the block, what runs is a generation from a prompt of this many positions."""
        before = self.prompt, self.chunked, self.guided
        self.prompt, self.chunked, self.guided = prompt, chunked, guided
        try:
            yield
        finally:
            self.prompt, self.chunked, self.guided = before

    def rewire(self) -> None:
        """Leave the module for the one that is now at its place."""
        if self.moved:
            self._take_out()
            self.module = self.place.module
            self._put_in()

    def _put_in(self) -> None:
        self._handle = self.module.register_forward_pre_hook(
            self._note, with_kwargs=True, prepend=True
        )

    def _take_out(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _note(self, _module: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        self.past = 0 if cache is None else int(cache.get_seq_length())

"""Places in a Hugging Face model: a module is looked up by its path whenever it is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn


class ArchitectureError(TypeError):
    """A model that vlm_lens has no record of, or whose modules do not match the record."""


@dataclass(frozen=True)
class Place:
    """Where in a model a module is: what is there now, not what was there once.

    A model lives on after it was wrapped: adapters take the place of linear layers, an embedding is
    made larger, a layer is quantised. So nothing of ours keeps a module; it keeps its place.

    Attributes:
        root: The module that the path starts from.
        path: Names of submodules, separated by dots; empty for the root itself.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> first = Place(model, "0")
        >>> model[0] = nn.Linear(2, 5)
        >>> first.module.out_features
        5
    """

    root: nn.Module
    path: str = ""

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self.path.split(".")) if self.path else ()

    def at(self, path: str) -> Place:
        """The place of a submodule of the module that is here."""
        return Place(self.root, f"{self.path}.{path}" if self.path and path else self.path or path)

    @property
    def module(self) -> Any:
        """The module that is here, typed loosely because Hugging Face modules are.

        Raises:
            ArchitectureError: There is none; the message says where the path ends.
        """
        module: Any = self.root
        for name in self._names:
            found = module._modules.get(name)
            found = self._beneath(module, name) if found is None else found
            module = found._modules.get("_orig_mod", found)  # in a part that torch.compile wrapped
        return module

    @property
    def exists(self) -> bool:
        """Whether there is a module here."""
        try:
            return self.module is not None
        except ArchitectureError:
            return False

    def _beneath(self, parent: nn.Module, name: str) -> nn.Module:
        """A part of what `parent` wraps: an adapter of peft's has the parts of its layer."""
        found = getattr(parent, name, None)
        if isinstance(found, nn.Module):
            return found
        raise ArchitectureError(
            f"Expected {type(self.root).__name__} to have a module at {self.path!r}, but "
            f"{type(parent).__name__} has no module {name!r}. Either vlm_lens needs a record for a "
            "model of this shape, or the model was taken apart after it was wrapped and has to be "
            "wrapped again."
        )

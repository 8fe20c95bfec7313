"""Activations by hook name, some of which are computed when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.utilities import Slice

from vlm_lens.hooks.heads import HEAD_SITES
from vlm_lens.inputs.owners import rows_are_samples

Change = Callable[[str, Tensor], Tensor]
"""From a hook name and an activation there to what becomes of it."""


class Activations(MutableMapping[str, Tensor]):
    """A dictionary of activations, in which those that were not kept are computed once.

    Args:
        kept: Activations by hook name.
        deferred: By hook name, what computes an activation that was not kept.

    Example:
        >>> import torch
        >>> found = Activations({"a": torch.zeros(2)}, {"b": lambda: torch.ones(2)})
        >>> list(found), found["b"].tolist()
        (['a', 'b'], [1.0, 1.0])
        >>> found.changed(lambda name, tensor: tensor[0])["b"].item()
        1.0
    """

    def __init__(
        self,
        kept: Mapping[str, Tensor],
        deferred: Mapping[str, Callable[[], Tensor]] | None = None,
    ) -> None:
        self._kept, self._deferred = dict(kept), dict(deferred or {})

    def __getitem__(self, name: str) -> Tensor:
        if name in self._deferred:
            self._kept[name] = self._deferred[name]()
            del self._deferred[name]
        return self._kept[name]

    def __setitem__(self, name: str, value: Tensor) -> None:
        self._deferred.pop(name, None)
        self._kept[name] = value

    def __delitem__(self, name: str) -> None:
        del (self._deferred if name in self._deferred else self._kept)[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._kept, *self._deferred])

    def __len__(self) -> int:
        return len(self._kept) + len(self._deferred)

    def __contains__(self, name: object) -> bool:
        return name in self._kept or name in self._deferred

    def to(self, target: torch.device | str | torch.dtype) -> Activations:
        """Activations on a device or in a dtype; so is what deferred ones are computed from."""
        if not isinstance(target, torch.dtype):
            self._deferred = {name: moved(make, target) for name, make in self._deferred.items()}
        return self.changed(lambda _name, value: value.to(target))

    def changed(self, change: Change) -> Activations:
        """Activations of which each one has been changed; what is deferred stays so."""
        kept = {name: change(name, value) for name, value in self._kept.items()}
        deferred = {
            name: partial(_changed, change, name, make) for name, make in self._deferred.items()
        }
        return Activations(kept, deferred)


def moved(held: Any, device: torch.device | str) -> Any:
    """A call that is still to be made, with all tensors that it holds on another device.

    Args:
        held: A `functools.partial`, a tensor, or anything that holds these.
        device: Where the tensors go.

    Example:
        >>> moved(partial(torch.add, torch.ones(2), other=torch.ones(2)), "meta")().device.type
        'meta'
    """
    if isinstance(held, Tensor):
        return held.to(device)
    if isinstance(held, partial):
        arguments = {name: moved(value, device) for name, value in held.keywords.items()}
        return partial(moved(held.func, device), *moved(held.args, device), **arguments)
    if isinstance(held, dict):
        return {name: moved(value, device) for name, value in held.items()}
    return tuple(moved(one, device) for one in held) if isinstance(held, tuple) else held


def _changed(change: Change, name: str, make: Callable[[], Tensor]) -> Tensor:
    return change(name, make())


def without_batch(name: str, value: Tensor) -> Tensor:
    """An activation of one sample without the batch dimension, where it has that dimension.

    Example:
        >>> one = torch.zeros(1, 5, 8)
        >>> without_batch("hook_embed", one).shape, without_batch("projector.hook_out", one).shape
        (torch.Size([5, 8]), torch.Size([1, 5, 8]))
    """
    return value[0] if rows_are_samples(name) and len(value) == 1 else value


def came_twice(name: str) -> ValueError:
    """The error of a cache that would keep the second of two values under one name."""
    return ValueError(
        f"{name} came by twice in one forward, as a tower does that reads images and then a video, "
        "and a cache keeps one value of each name: run them one after the other, or keep other "
        "names only (names_filter='blocks.*')."
    )


def cut_positions(name: str, value: Tensor, positions: Slice | None) -> Tensor:
    """Some of the positions of an activation, where these are those of a sequence of text.

    What is read of an image by cross-attention is no such sequence; of scores and patterns, these
    are the queries.

    Example:
        >>> cut_positions("blocks.0.attn.hook_pattern", torch.zeros(1, 4, 7, 7), Slice([-1])).shape
        torch.Size([1, 4, 1, 7])
    """
    is_read = name.endswith(("cross_attn.hook_k", "cross_attn.hook_v"))  # of another sequence
    if positions is None or is_read or not rows_are_samples(name):
        return value
    return positions.apply(value, dim=-3 if name.endswith(HEAD_SITES) else -2)

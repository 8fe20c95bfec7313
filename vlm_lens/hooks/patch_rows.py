"""The plain layout of activations: ``[image_or_tile, patch, ...]``, patches row by row.

Some towers keep their patches otherwise: all images in one sequence, in groups of 2x2 that are
merged later, window by window, or with padding between tiles. A `PatchRows` notes, when the tower
starts, where each patch of each image lies, and shows the tower's tensors in the plain layout.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from vlm_lens.hooks.bound import Bound
from vlm_lens.hooks.place import Place
from vlm_lens.hooks.shared import SharedAt
from vlm_lens.hooks.tap import Tap, Wire, Wired
from vlm_lens.hooks.view import View

NO_ROW = -1
"""In an index: no patch; images with fewer patches than the largest are filled up with it."""

RowIndex = Callable[[nn.Module, dict[str, Any]], Int[Tensor, "image patch"]]
"""From a module and its arguments by name: the row of every patch of every image, else `NO_ROW`.

Rows are those of the model's tensor with all axes but the last one flattened.
"""


def show_rows(
    x: Shaped[Tensor, "*rows d"], index: Int[Tensor, "image patch"]
) -> Shaped[Tensor, "image patch d"]:
    """The rows of a tensor as patches of images, 0 where an image has no more of them."""
    index = index.to(x.device)
    rows = x.flatten(0, -2)[index.clamp(min=0)]
    return rows if (index >= 0).all() else rows * (index >= 0)[..., None]


def put_rows(
    answer: Shaped[Tensor, "image patch d"],
    x: Shaped[Tensor, "*rows d"],
    index: Int[Tensor, "image patch"],
) -> Shaped[Tensor, "*rows d"]:
    """A copy of a tensor with other values in the rows of these patches."""
    real = index.to(x.device) >= 0
    rows = x.flatten(0, -2).clone()
    rows[index.to(x.device)[real]] = answer[real].to(rows.dtype)
    return rows.view(x.shape)


class PatchRows(SharedAt):
    """Shows the tensors of one part of a model in the plain layout.

    Args:
        place: Where the module is whose arguments say how the patches lie.
        rows: Works that out from the arguments.
    """

    def __init__(self, place: Place, rows: RowIndex) -> None:
        super().__init__(place)
        self._rows = rows
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        self.index: Int[Tensor, "image patch"] | None = None
        self.view = View(show=self._show, put_back=self._put_back)

    def wire(self, wire: Wire) -> Wire:
        """A wire that keeps the rows up to date as long as it is in place."""
        return Bound(self._wire_both, wire)

    def _wire_both(self, wire: Wire, tap: Any) -> Wired:
        rows = self.use()
        try:
            return _Both(rows, wire(tap))
        except BaseException:
            rows.remove()
            raise

    def _put_in(self) -> None:
        """Read the module's arguments from now on."""
        self._handle = self.module.register_forward_pre_hook(
            self._read, with_kwargs=True, prepend=True
        )

    def _take_out(self) -> None:
        assert self._handle is not None
        self._handle.remove()
        self.index = None

    def _read(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        self.index = self._rows(module, {**bound, **kwargs})

    def _show(self, x: Tensor) -> Tensor:
        return show_rows(x, self.known_index())

    def _put_back(self, answer: Tensor, x: Tensor) -> Tensor:
        return put_rows(answer, x, self.known_index())

    def known_index(self) -> Int[Tensor, "image patch"]:
        """The index of the forward that is running."""
        if self.index is None:
            raise RuntimeError(
                f"{self.place.path} was not run before a hook inside it fired, so the "
                "place of its patches is not known."
            )
        return self.index


def tap_at(
    what: Callable[..., Wire],
    place: Place,
    *,
    patch_rows: PatchRows | None,
    view: View | None = None,
    **options: Any,
) -> Tap:
    """A tap at a place of a module, whose hooks see the plain layout.

    Args:
        what: `output_of`, `input_of` or `shared_input_of`.
        place: Where the module is.
        patch_rows: Where each patch lies, in a module that keeps another layout.
        view: What hooks see of a tensor in the plain layout.
        **options: Passed to `what`.

    Example:
        >>> from vlm_lens.hooks import output_of
        >>> linear = nn.Linear(2, 2)
        >>> place = Place(linear)
        >>> halves = PatchRows(place, lambda module, arguments: torch.tensor([[0, 1], [2, 3]]))
        >>> tap = tap_at(output_of, place, patch_rows=halves)
        >>> _ = tap.add_hook(lambda tensor, hook: print(tensor.shape))
        >>> _ = linear(torch.zeros(4, 2))
        torch.Size([2, 2, 2])
    """
    if patch_rows is None:
        return Tap(what(place, view=view, **options))
    wire = what(place, view=patch_rows.view.then(view), **options)
    return Tap(patch_rows.wire(wire), patch_rows=patch_rows)


class _Both:
    def __init__(self, *parts: Wired) -> None:
        self._parts = parts

    @property
    def moved(self) -> bool:
        return any(part.moved for part in self._parts)

    def remove(self) -> None:
        for part in self._parts:
            part.remove()

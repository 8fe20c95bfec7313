"""Views: how a hook sees a tensor of the model, and how what it answers goes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor


@dataclass(frozen=True)
class View:
    """What a hook is shown of the model's tensor, and the way back.

    Attributes:
        show: Turns the model's tensor into what hooks see.
        put_back: Takes what hooks answered and the model's own tensor, which fills in whatever was
            not shown, and gives the tensor for the model.
    """

    show: Callable[[Tensor], Tensor]
    put_back: Callable[[Tensor, Tensor], Tensor]

    def then(self, inner: View | None) -> View:
        """This view, and of what it shows another one."""
        if inner is None:
            return self
        return View(
            show=lambda x: inner.show(self.show(x)),
            put_back=lambda answer, x: self.put_back(inner.put_back(answer, self.show(x)), x),
        )


def heads_view(n_heads: int) -> View:
    """Shows ``[..., heads * d_head]`` as ``[..., heads, d_head]``.

    Example:
        >>> import torch
        >>> heads_view(4).show(torch.zeros(2, 3, 20)).shape
        torch.Size([2, 3, 4, 5])
    """
    return View(
        show=lambda x: x.unflatten(-1, (n_heads, -1)),
        put_back=lambda answer, _x: answer.flatten(-2),
    )


@dataclass(frozen=True)
class OutputPart:
    """Some of the outputs of a layer that does several things at once, and how hooks see them.

    Attributes:
        size: How many they are.
        view: Shows them in a tensor whose last axis has all outputs.
    """

    size: int
    view: View


def slice_part(start: int, stop: int) -> OutputPart:
    """A slice of the last axis, such as the queries of a fused projection.

    Example:
        >>> import torch
        >>> fused = torch.arange(6.0)
        >>> view = slice_part(2, 4).view
        >>> view.put_back(view.show(fused) * 10, fused)
        tensor([ 0.,  1., 20., 30.,  4.,  5.])
    """
    show = View(
        show=lambda x: x[..., start:stop], put_back=partial(_with_slice, slice(start, stop))
    )
    return OutputPart(stop - start, show)


def by_head_part(n_heads: int, which: int, of: int, size: int) -> OutputPart:
    """One of several things that lie next to each other for each head, such as its queries.

    Args:
        n_heads: Number of heads.
        which: Which of the things.
        of: How many there are.
        size: How many outputs a thing has, all heads together.

    Example:
        >>> import torch
        >>> by_head_part(2, 1, 3, 4).view.show(torch.arange(12))  # of heads 0-5 and 6-11
        tensor([2, 3, 8, 9])
    """

    def show(x: Tensor) -> Tensor:
        return x.unflatten(-1, (n_heads, of, -1))[..., which, :].flatten(-2)

    def put_back(answer: Tensor, x: Tensor) -> Tensor:
        changed = x.clone().unflatten(-1, (n_heads, of, -1))
        changed[..., which, :] = answer.unflatten(-1, (n_heads, -1))
        return changed.flatten(-3)

    return OutputPart(size, View(show, put_back))


def _with_slice(where: slice, answer: Tensor, x: Tensor) -> Tensor:
    changed = x.clone()
    changed[..., where] = answer
    return changed

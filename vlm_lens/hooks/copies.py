"""Taps on what the model has no tensor for: each head's output, and each head's own input.

A head's output is summed with that of all others in one product, and all heads read one stream. To
show the parts, they are computed beside the model's own product, which stays: what hooks change in
them is added to it as a difference. So a hook that only reads changes not a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm_lens.hooks.adapters import running
from vlm_lens.hooks.patch_rows import PatchRows
from vlm_lens.hooks.place import Place
from vlm_lens.hooks.shared import SharedAt
from vlm_lens.hooks.tap import Tap, fire, recomputed_modules
from vlm_lens.hooks.view import View


class _Beside(SharedAt):
    """What both kinds have in common: tensors in the plain layout, and differences put back.

    Args:
        place: Where the module is whose input is shown.
        patch_rows: Shows its tensors as [batch, pos, d], where the model has another layout.
    """

    def __init__(self, place: Place, *, patch_rows: PatchRows | None) -> None:
        super().__init__(place)
        self._rows = patch_rows
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def _tap(self) -> Tap:
        wire = self.use if self._rows is None else self._rows.wire(self.use)
        return Tap(wire, patch_rows=self._rows)

    def _show(self, x: Tensor) -> Float[Tensor, "batch pos d"]:
        return x if self._rows is None else self._rows.view.show(x)

    def _added(self, output: Tensor, change: Float[Tensor, "batch pos d"]) -> Tensor:
        if self._rows is not None:
            change = self._rows.view.put_back(change, torch.zeros_like(output))
        return output + change.to(output.dtype)

    def _in_front(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Replace a module's output before any tap sees it."""
        self._handles.append(module.register_forward_hook(hook, prepend=True))
        recomputed_modules.add(module)

    def _take_out(self) -> None:
        while self._handles:
            self._handles.pop().remove()


def _answered(tap: Tap, given: Tensor) -> Tensor | None:
    """What hooks made of a copy; None where nothing was changed and no gradient is wanted."""
    answer, changed = fire(tap, given.clone())
    return answer if changed or torch.is_grad_enabled() else None


class HeadResults(_Beside):
    """What each head adds before heads are summed: its output times its part of ``W_O``.

    Args:
        place: Where the output projection is.
        n_heads: Number of heads.
        weight: Gives ``W_O``, as it is when the model runs.
        patch_rows: Where each position lies in its tensors, if not in the plain layout.
    """

    def __init__(
        self,
        place: Place,
        *,
        n_heads: int,
        weight: Callable[[], Float[Tensor, "head d_head d_model"]],
        patch_rows: PatchRows | None = None,
    ) -> None:
        super().__init__(place, patch_rows=patch_rows)
        self._n_heads, self._weight = n_heads, weight
        self.tap = self._tap()

    def _put_in(self) -> None:
        self._in_front(self.module, self._on_projection)

    def _take_out(self) -> None:
        super()._take_out()
        recomputed_modules.discard(self.module)

    def _on_projection(self, _module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        z = self._show(args[0]).unflatten(-1, (self._n_heads, -1))
        given = torch.einsum("...hd,hdm->...hm", z, self._weight())
        answer = _answered(self.tap, given)
        return None if answer is None else self._added(output, (answer - given).sum(-2))


@dataclass(frozen=True)
class ReadBy:
    """One of the projections that read the normalised stream.

    Attributes:
        place: Where the linear layer is.
        view: Where its outputs are in those of the layer; None where they are all of them.
        n_heads: How many heads it serves.
        weight: Gives its weight, as it is when the model runs.
    """

    place: Place
    view: View | None
    n_heads: int
    weight: Callable[[], Float[Tensor, "head d_model d_head"]]


class InputCopies(_Beside):
    """A copy of the residual stream for each head, before the norm in front of attention.

    Args:
        norm: Where the norm is.
        readers: The projections that read what it gives.
        n_taps: One tap for each of the readers, or a single one for all of them, which then have
            the same number of heads.
        patch_rows: Where each position lies in its tensors, if not in the plain layout.
    """

    def __init__(
        self,
        norm: Place,
        readers: Sequence[ReadBy],
        *,
        n_taps: int,
        patch_rows: PatchRows | None = None,
    ) -> None:
        super().__init__(norm, patch_rows=patch_rows)
        self._readers = list(readers)
        self.taps = [self._tap() for _ in range(n_taps)]
        self._changes: list[Tensor | None] = []
        self._modules: list[nn.Module] = []

    def _put_in(self) -> None:
        self._modules = [reader.place.module for reader in self._readers]
        self._handles.append(self.module.register_forward_pre_hook(self._before_norm))
        for module in dict.fromkeys(self._modules):
            self._in_front(module, self._on_projection)

    def _take_out(self) -> None:
        super()._take_out()
        self._changes = []
        for module in self._modules:
            recomputed_modules.discard(module)

    @property
    def moved(self) -> bool:
        """Whether another module has taken the place of one that it is in."""
        now = [reader.place.module for reader in self._readers]
        return super().moved or any(a is not b for a, b in zip(now, self._modules, strict=True))

    def _before_norm(self, module: nn.Module, args: tuple) -> None:
        """Show each head's copy, and keep what the norm makes of the change."""
        stream, apply = self._show(args[0]), running(module).forward
        self._changes = []
        for tap, reader in zip(self.taps, self._readers, strict=False):
            answer = None
            given = stream.unsqueeze(-2).expand(*stream.shape[:-1], reader.n_heads, -1)
            if tap.has_hooks():
                answer = _answered(tap, given)
            self._changes.append(None if answer is None else apply(answer) - apply(given))
        self._changes *= len(self._readers) // len(self.taps)

    def _on_projection(self, module: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
        """Add what the projection makes of the changes."""
        changed = output
        for change, reader, inside in zip(self._changes, self._readers, self._modules, strict=True):
            if change is not None and inside is module:
                part = torch.einsum("...hd,hde->...he", change, reader.weight()).flatten(-2)
                if reader.view is not None:
                    others = part.new_zeros(*part.shape[:-1], output.shape[-1])
                    part = reader.view.put_back(part, others)
                changed = self._added(changed, part)
        return None if changed is output else changed

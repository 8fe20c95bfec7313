"""Hooks by name, glob or predicate on a tree of taps; checked before they are set, never leaked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import Slice

from vlm_lens.hooks import Tap, resolve_names
from vlm_lens.hooks.heads import HEAD_SITES
from vlm_lens.hooks.names import NamesFilter

HookFunction = Callable[..., Tensor | None]
Hooks = Sequence[tuple[NamesFilter, HookFunction]]
Direction = Literal["fwd", "bwd"]
HooksToSet = tuple[list[Tap], HookFunction, Direction]


class HookNeverFiredWarning(UserWarning):
    """A hook was set and the model ran, but its tensor never came by."""


class TapRoot(HookedRootModule):
    """A `HookedRootModule` whose hook points are `Tap`s."""

    hook_dict: dict[str, Tap]
    _n_runs: int = 0

    def setup(self) -> None:
        """Name the taps, and only them: Hugging Face's modules are left as they are."""
        self.hook_dict = {
            name: module for name, module in self.named_modules() if isinstance(module, Tap)
        }
        self.mod_dict = dict(self.hook_dict)
        for name, tap in self.hook_dict.items():
            tap.name = name

    def add_hook(
        self,
        name: NamesFilter,
        hook: HookFunction,
        dir: Direction = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Add a hook at every hook point that the name, glob or predicate matches."""
        for match in resolve_names(name, self.hook_dict):
            self.hook_dict[match].add_hook(
                hook, dir, is_permanent=is_permanent, level=level, prepend=prepend
            )

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Any]:
        """Set hooks for the length of a ``with`` block; they are gone after it, whatever happens.

        Args:
            fwd_hooks: Pairs of a name, glob, list or predicate, and ``fn(tensor, hook)``. What
                the function returns, if not None, takes the activation's place.
            bwd_hooks: The same on gradients.
            reset_hooks_end: Whether to remove the hooks at the end of the block.
            clear_contexts: Whether to empty the hook points' `ctx` too.

        Raises:
            HookNameError: A name matches nothing (before any hook is set).

        Warns:
            HookNeverFiredWarning: The model ran, but a forward hook's tensor never came by.
        """
        wanted = self._resolve(fwd_hooks, bwd_hooks)
        watched = {tap: tap.fired for taps, _, dir_ in wanted if dir_ == "fwd" for tap in taps}
        n_runs = self._n_runs
        with self._set(wanted, reset_hooks_end, clear_contexts):
            yield self
        if self._n_runs > n_runs:
            _warn_of_silence([tap for tap, fired in watched.items() if tap.fired == fired])

    def _resolve(self, fwd_hooks: Hooks, bwd_hooks: Hooks = ()) -> list[HooksToSet]:
        def taps(name: NamesFilter) -> list[Tap]:
            return [self.hook_dict[match] for match in resolve_names(name, self.hook_dict)]

        wanted: list[HooksToSet] = [(taps(name), hook, "fwd") for name, hook in fwd_hooks]
        return wanted + [(taps(name), hook, "bwd") for name, hook in bwd_hooks]

    @contextmanager
    def _set(
        self, wanted: list[HooksToSet], reset: bool = True, clear_contexts: bool = False
    ) -> Iterator[None]:
        """Add hooks to taps and take them away again; the names are known to be right."""
        self.context_level += 1
        level, touched = self.context_level, []
        try:
            for taps, hook, direction in wanted:
                for tap in taps:
                    touched.append(tap)
                    tap.add_hook(hook, direction, level=level)
            yield
        finally:
            if reset:
                for tap in touched:
                    tap.remove_hooks("both", level=level)
            if clear_contexts:
                self.clear_contexts()
            self.context_level -= 1

    def add_caching_hooks(self, names_filter: NamesFilter = None, *args: Any, **kwargs: Any):
        """As in TransformerLens; globs work, and a name that matches nothing is refused."""
        return super().add_caching_hooks(
            resolve_names(names_filter, self.hook_dict), *args, **kwargs
        )

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> tuple[dict[str, Tensor], list, list]:
        """Hooks that keep activations in a dictionary; nothing is set yet.

        Returns:
            The dictionary to be filled, the forward hooks and the backward hooks (gradients are
            kept under the name with ``_grad`` behind it).
        """
        kept: dict[str, Tensor] = {} if cache is None else cache
        moves = device is not None or dtype is not None
        positions = None if pos_slice is None else Slice.unwrap(pos_slice)

        def keep(tensor: Tensor, hook: HookPoint, suffix: str = "") -> None:
            name = str(hook.name)
            value = tensor.detach()
            if moves:
                value = value.to(device=device, dtype=dtype)
            if remove_batch_dim and value.shape[0] == 1:
                value = value[0]
            if positions is not None and _is_language_model(name):
                value = positions.apply(value, dim=-3 if name.endswith(HEAD_SITES) else -2)
            kept[name + suffix] = value

        def keep_gradient(tensor: Tensor, hook: HookPoint) -> None:
            keep(tensor, hook, "_grad")

        names = resolve_names(names_filter, self.hook_dict)
        fwd = [(name, keep) for name in names]
        return kept, fwd, [(name, keep_gradient) for name in names] if incl_bwd else []


def _is_language_model(name: str) -> bool:
    return not name.startswith(("vision_encoder.", "audio_encoder.", "qformer.", "projector."))


def _warn_of_silence(silent: list[Tap]) -> None:
    if not silent:
        return
    names = [str(tap.name) for tap in silent]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    warnings.warn(
        f"{len(names)} hooked points never fired: {shown}. Hooks in the vision encoder and the "
        "projector fire only when an image is given.",
        HookNeverFiredWarning,
        stacklevel=4,
    )

"""Hooks by name, glob or predicate on a tree of taps; checked before they are set, never leaked."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import Slice

from vlm_lens.activations import came_twice, cut_positions, without_batch
from vlm_lens.hooks import Tap, resolve_names
from vlm_lens.hooks.answers import HookFunction, check_hook
from vlm_lens.hooks.checkpointing import same_hooks_in_backward
from vlm_lens.hooks.names import HookNameError, NamesFilter, matches_of
from vlm_lens.hooks.turns import Turns
from vlm_lens.hooks.wired import WiredTaps
from vlm_lens.keywords import keywords_of, knows_its_keywords, refuse_unknown

Hooks = Iterable[tuple[NamesFilter, HookFunction]]
Direction = Literal["fwd", "bwd"]
HooksToSet = tuple[list[Tap], HookFunction, Direction]


class HookNeverFiredWarning(UserWarning):
    """A hook was set and the model ran, but its tensor never came by."""


class TapRoot(HookedRootModule):
    """A `HookedRootModule` whose hook points are `Tap`s."""

    hook_dict: dict[str, Tap]
    hf_model: Any
    _turns: Turns

    def __init__(self) -> None:
        super().__init__()
        self._n_runs = 0
        self._wired_taps = WiredTaps()
        self._part = ""  # which layers the last run was of, where not of all
        self._forward: int | None = None  # the number of the single forward that runs now
        self._open_levels: set[int] = set()

    @property
    def context_level(self) -> int:
        """The highest level of the blocks of hooks that are open, 0 outside of all."""
        return max(self._open_levels, default=0)

    @context_level.setter
    def context_level(self, level: int) -> None:
        """Only the blocks themselves decide on it; `HookedRootModule` starts with 0."""

    def setup(self) -> None:
        """Name the taps, and only them: Hugging Face's modules are left as they are."""
        self.hook_dict = {
            name: module for name, module in self.named_modules() if isinstance(module, Tap)
        }
        self.mod_dict = dict(self.hook_dict)
        for name, tap in self.hook_dict.items():
            tap.name, tap.wired_taps = name, self._wired_taps

    @knows_its_keywords
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
        for tap in self._taps_of(name):
            tap.add_hook(hook, dir, is_permanent=is_permanent, level=level, prepend=prepend)

    def _taps_of(self, name: NamesFilter) -> list[Tap]:
        """The taps that a hook is set at; none would be a hook that never fires."""
        taps = [self.hook_dict[match] for match in resolve_names(name, self.hook_dict)]
        if not taps:
            raise HookNameError(f"Expected names of hook points to set a hook at, got {name!r}.")
        return taps

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **unknown: Any,
    ) -> Iterator[Any]:
        """Set hooks for the length of a ``with`` block; they are gone after it, whatever happens.

        The block is its thread's turn: other threads that run the model wait until it ends.

        Args:
            fwd_hooks: Pairs of a name, glob, list or predicate, and ``fn(tensor, hook)``. What
                the function returns, if not None, takes the activation's place.
            bwd_hooks: The same on gradients.
            reset_hooks_end: Whether to remove the hooks at the end of the block.
            clear_contexts: Whether to empty the hook points' `ctx` too.
            **unknown: None; it is refused with the nearest names.

        Raises:
            HookNameError: A name matches nothing (before any hook is set).
            TypeError: What is given is no list of pairs, or a hook is no function of a tensor and
                ``hook`` (likewise).

        Warns:
            HookNeverFiredWarning: The model ran, but a forward hook's tensor never came by: that
                of a name, or all that a glob or a predicate matches.
        """
        refuse_unknown("hooks", unknown, keywords_of(type(self).hooks))
        fwd_hooks = _pairs(fwd_hooks, "fwd_hooks")
        wanted = self._resolve(fwd_hooks, bwd_hooks)
        asked = [part for name, _ in fwd_hooks for part in self._asked(name)]
        with self._set_and_watch(wanted, asked, reset_hooks_end, clear_contexts):
            yield self

    def _asked(self, names_filter: NamesFilter) -> list[list[Tap]]:
        """The taps that each part of a filter stands for."""
        parts = matches_of(names_filter, self.hook_dict)
        return [[self.hook_dict[name] for name in part] for part in parts]

    @contextmanager
    def _set_and_watch(
        self, wanted: list[HooksToSet], asked: list[list[Tap]], *options: bool
    ) -> Iterator[None]:
        """Set hooks, and warn of what was asked for if none of its taps fired in a run."""
        with self._set(wanted, *options):
            before = {tap: tap.fired for part in asked for tap in part}
            n_runs = self._n_runs
            yield
            silent = [part for part in asked if all(tap.fired == before[tap] for tap in part)]
            silent = silent if self._n_runs > n_runs else []
        _warn_of_silence([tap for part in silent for tap in part], self._part)

    def _resolve(self, fwd_hooks: Hooks, bwd_hooks: Hooks = ()) -> list[HooksToSet]:
        wanted: list[HooksToSet] = []
        checked: set[int] = set()  # one function is often set at every point
        directions: tuple[tuple[Hooks, Direction], ...] = ((fwd_hooks, "fwd"), (bwd_hooks, "bwd"))
        for hooks, direction in directions:
            for name, hook in _pairs(hooks, f"{direction}_hooks"):
                taps = self._taps_of(name)
                if id(hook) not in checked:
                    first = next((tap.name for tap in taps), None)
                    check_hook(hook, name if isinstance(name, str) else first)
                    checked.add(id(hook))
                wanted.append((taps, hook, direction))
        return wanted

    @contextmanager
    def _set(
        self, wanted: list[HooksToSet], reset: bool = True, clear_contexts: bool = False
    ) -> Iterator[None]:
        """Add hooks to taps and take them away again; the names are known to be right."""
        with self._turns, self._level() as level:
            touched: list[Tap] = []
            try:
                for taps, hook, direction in wanted:
                    for tap in taps:
                        touched.append(tap)
                        tap.attach(hook, direction, level=level if reset else None)
                yield
            finally:
                for tap in touched if reset else ():
                    tap.remove_hooks("both", level=level)
                if clear_contexts:
                    self.clear_contexts()

    @contextmanager
    def _level(self) -> Iterator[int]:
        """A level of this block's own, so that it removes its own hooks and no others.

        Blocks need not end in the order they began in: two widgets, or two tasks, do not.
        """
        level = max(self._open_levels, default=0) + 1
        self._open_levels.add(level)
        try:
            yield level
        finally:
            self._open_levels.remove(level)

    @contextmanager
    def _run(self, part: str = "", *, generates: bool = False) -> Iterator[None]:
        """One run of the Hugging Face model, in this thread's turn, with taps where it runs.

        Args:
            part: Which of its layers run, where not all do.
            generates: Whether it runs a forward for each token.
        """
        with self._turns, ExitStack() as stack:
            self._n_runs, self._part = self._n_runs + 1, part
            before, self._forward = self._forward, None if generates else self._n_runs
            stack.callback(setattr, self, "_forward", before)
            self._wired_taps.rewire_moved()
            if self._wired_taps and torch.is_grad_enabled():
                stack.enter_context(same_hooks_in_backward(self.hf_model, self._wired_taps))
            yield

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
        kept_in: dict[str, int | None] = {}  # by name, the forward that was kept last
        moves = device is not None or dtype is not None
        positions = None if pos_slice is None else Slice.unwrap(pos_slice)

        def keep(tensor: Tensor, hook: HookPoint, suffix: str = "") -> None:
            name = str(hook.name)
            if kept_in.get(name + suffix) == self._forward is not None:
                raise came_twice(name)
            kept_in[name + suffix] = self._forward
            value = cut_positions(name, tensor.detach(), positions)
            if moves:
                value = value.to(device=device, dtype=dtype)
            kept[name + suffix] = without_batch(name, value) if remove_batch_dim else value

        vars(keep)["only_reads"] = True

        names = resolve_names(names_filter, self.hook_dict)
        fwd = [(name, keep) for name in names]
        keep_gradient = partial(keep, suffix="_grad")
        return kept, fwd, [(name, keep_gradient) for name in names] if incl_bwd else []


def _pairs(hooks: Any, argument: str) -> list[tuple[NamesFilter, HookFunction]]:
    """Hooks as a list of pairs, or one clear error."""
    listed = isinstance(hooks, Iterable) and not isinstance(hooks, str | Mapping)
    pairs: list[Any] = list(hooks) if listed else []
    swapped = [pair for pair in pairs if _is_swapped(pair)]
    if swapped:
        raise TypeError(
            f"Expected pairs (name, function) in {argument}, got (function, name): {swapped[0]!r}."
        )
    if pairs and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        return [(name, hook) for name, hook in pairs]
    if not pairs and not hooks:
        return []
    raise TypeError(
        f"Expected {argument} to be a list of pairs (name, function), got {hooks!r:.200}. One pair "
        "has to be in a list too: [(name, function)]."
    )


def _is_swapped(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and callable(pair[0])
        and isinstance(pair[1], str)
    )


def _warn_of_silence(silent: list[Tap], part: str) -> None:
    if not silent:
        return
    names = [str(tap.name) for tap in silent]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    reason = part or (
        "Hooks in the vision encoder and the projector fire only when an image is given."
    )
    warnings.warn(
        f"{len(names)} hooked points never fired: {shown}. {reason}",
        HookNeverFiredWarning,
        stacklevel=6,
    )

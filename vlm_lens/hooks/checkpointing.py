"""Gradient checkpointing: blocks computed again in backward see the hooks of their forward.

By then the hooks may be gone, or others may be set, and the gradient would be that of another
computation. So each block remembers, when it runs, which hooks there were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from vlm_lens.hooks.tap import HeldHooks, Tap
from vlm_lens.hooks.wired import WiredTaps

_CHECKPOINT = "_gradient_checkpointing_func"
_NONE = HeldHooks()


@contextmanager
def same_hooks_in_backward(hf_model: nn.Module, taps: WiredTaps) -> Iterator[None]:
    """Let the blocks that run within this block be computed again with the hooks they have now.

    Args:
        hf_model: The model, with gradient checkpointing or without.
        taps: Those of the model's taps that are wired, whenever they are asked for.
    """
    changed = [
        module
        for module in hf_model.modules()
        if getattr(module, "gradient_checkpointing", False) and _CHECKPOINT in vars(module)
    ]
    theirs = [getattr(module, _CHECKPOINT) for module in changed]
    try:
        for module, checkpoint in zip(changed, theirs, strict=True):
            setattr(module, _CHECKPOINT, partial(_checkpointed, checkpoint, taps))
        yield
    finally:
        for module, checkpoint in zip(changed, theirs, strict=True):
            setattr(module, _CHECKPOINT, checkpoint)


def _checkpointed(
    checkpoint: Callable[..., Any], taps: WiredTaps, block: Callable[..., Any], *args: Any
) -> Any:
    """What runs in place of a module's own checkpointing function."""
    held = _held(taps)
    rows = {tap.patch_rows: tap.patch_rows.index for tap in held if tap.patch_rows is not None}

    def as_now(*inputs: Any) -> Any:
        with _holding(taps, held):
            for patch_rows, index in rows.items():
                patch_rows.index = index
            return block(*inputs)

    return checkpoint(as_now, *args)


def _held(taps: WiredTaps) -> dict[Tap, HeldHooks]:
    return {tap: tap.held for tap in taps}


@contextmanager
def _holding(taps: WiredTaps, then: dict[Tap, HeldHooks]) -> Iterator[None]:
    """Taps hold these hooks and no others within the block."""
    now = _held(taps)
    different = [tap for tap in {**now, **then} if now.get(tap, _NONE) != then.get(tap, _NONE)]
    try:
        for tap in different:
            tap.held = then.get(tap, _NONE)
        yield
    finally:
        for tap in different:
            tap.held = now.get(tap, _NONE)

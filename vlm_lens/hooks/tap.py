"""A tap: a hook point that knows where in the Hugging Face model its tensor lives.

A tap is wired into the model (one PyTorch hook) when it gets its first hook and unwired when it
loses its last one. A model whose taps are idle therefore *is* the Hugging Face model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint, LensHandle
from transformers.utils import ModelOutput

from vlm_lens.hooks.view import View


@runtime_checkable
class Removable(Protocol):
    """What wiring a tap returns: calling `remove` undoes it."""

    def remove(self) -> None: ...


recomputed_modules: WeakSet[nn.Module] = WeakSet()
"""Modules whose output a probe of ours is about to replace with its own."""

Wire = Callable[["Tap"], Removable]


class Tap(HookPoint):
    """A `HookPoint` that is connected to its place in the model only while it has hooks.

    Args:
        wire: Connects the tap to its place and returns a handle that disconnects it.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> tap = Tap(output_of(linear))
        >>> handle = tap.add_hook(lambda tensor, hook: tensor * 0)
        >>> linear(torch.ones(1, 2)).sum().item()
        0.0
        >>> tap.remove_hooks("fwd")
        >>> len(linear._forward_hooks)
        0
    """

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire
        self._wired: Removable | None = None
        self.fired = 0
        """How many times the tap's tensor has passed through it."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a plain attribute: a tap has no parameters or submodules to look for every time."""
        object.__setattr__(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        self.fired += 1
        return x

    def add_hook(self, hook: Any, dir: Literal["fwd", "bwd"] = "fwd", *args: Any, **kwargs: Any):
        """As `HookPoint.add_hook`; the first hook wires the tap into the model."""
        handle: LensHandle = super().add_hook(hook, dir, *args, **kwargs)
        if self._wired is None:
            self._wired = self._wire(self)
        return handle

    def remove_hooks(self, dir: Literal["fwd", "bwd", "both"] = "fwd", *args: Any, **kwargs: Any):
        """As `HookPoint.remove_hooks`; with the last hook the tap leaves the model."""
        super().remove_hooks(dir, *args, **kwargs)
        if self._wired is not None and not self.has_hooks():
            self._wired.remove()
            self._wired = None


def fire(tap: Tap, value: Tensor) -> tuple[Tensor, bool]:
    """Pass a tensor through a tap, and say whether its hooks changed the values.

    A hook may answer with a new tensor or write into the one it was given; both count.
    """
    if value.is_inference():  # inference tensors keep no version counter
        before = value.clone()
        out = tap(value)
        return out, not torch.equal(out, before)
    version = value._version
    out = tap(value)
    same_memory = out.data_ptr() == value.data_ptr() and out.shape == value.shape
    return out, not same_memory or value._version != version


def output_of(module: nn.Module, *, view: View | None = None) -> Wire:
    """Wire a tap to a module's output: a tensor, or the first one of several.

    The PyTorch hook is put in front of those already there, so that whatever Hugging Face records
    of this module (hidden states that a projector selects) is what the tap's hooks returned.
    """

    def wire(tap: Tap) -> Removable:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            answer = through(tap, output if isinstance(output, Tensor) else output[0], view)
            return None if answer is None else _with_first(output, answer)

        # A norm that a probe computes again is the probe's own output: the tap comes after it.
        return module.register_forward_hook(hook, prepend=module not in recomputed_modules)

    return wire


def _with_first(output: Any, answer: Tensor) -> Any:
    """A module's output with another first tensor."""
    if isinstance(output, Tensor):
        return answer
    if isinstance(output, ModelOutput):
        return type(output)(**{**output, next(iter(output)): answer})
    return (answer, *output[1:])


def input_of(module: nn.Module, *, keyword: str | None = None, view: View | None = None) -> Wire:
    """Wire a tap to a module's input: its first argument, or the keyword argument of that name."""
    name = keyword or _first_parameter(module)

    def wire(tap: Tap) -> Removable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> Any:
            value = args[0] if args else kwargs[name]
            answer = through(tap, value, view)
            if answer is None:
                return None
            return ((answer, *args[1:]), kwargs) if args else (args, {**kwargs, name: answer})

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    return wire


def _first_parameter(module: nn.Module) -> str:
    return next(iter(inspect.signature(module.forward).parameters))


def shared_input_of(module: nn.Module, *, view: View | None = None) -> Wire:
    """Wire a tap to an input that the caller goes on using (a residual stream before its norm).

    Replacing the argument would change the norm's input and leave the residual branch as it was.
    So what hooks answer is put into the tensor that both branches share.
    """
    name = _first_parameter(module)

    def wire(tap: Tap) -> Removable:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            shared = args[0] if args else kwargs[name]
            if torch.is_grad_enabled():
                # Hooks see a copy, which stays as it was for backward; they may also change the
                # gradient alone, so their answer always counts.
                copy = shared.clone()
                answer = through(tap, copy, view)
                shared.copy_(copy if answer is None else answer)
                return
            answer = through(tap, shared, view)
            if answer is not None:  # other memory, so that what a cache kept is not overwritten
                shared.data = answer.to(shared).expand_as(shared)  # fits or fails, like copy_

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    return wire


def through(tap: Tap, value: Tensor, view: View | None) -> Tensor | None:
    """The tap's answer in the model's layout, or None where the model's own tensor stands."""
    if view is None:
        answer = tap(value)
        return None if answer is value else answer
    answer, changed = fire(tap, view.show(value))
    # With gradients, what hooks saw must be on the way from the input to the output.
    return view.put_back(answer, value) if changed or torch.is_grad_enabled() else None

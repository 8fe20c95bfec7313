"""A tap: a hook point that knows where in the Hugging Face model its tensor lives.

A tap is wired into the model (one PyTorch hook) when it gets its first hook and unwired when it
loses its last one. A model whose taps are idle therefore *is* the Hugging Face model.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.hook_points import HookPoint, LensHandle
from transformers.utils import ModelOutput

from vlm_lens.hooks.answers import answer_of, check_hook
from vlm_lens.hooks.bound import Bound
from vlm_lens.hooks.place import Place
from vlm_lens.hooks.view import View
from vlm_lens.hooks.wired import WiredTaps


@runtime_checkable
class Wired(Protocol):
    """What wiring a tap returns: calling `remove` undoes it."""

    def remove(self) -> None: ...

    @property
    def moved(self) -> bool:
        """Whether another module has taken the place of the one that the tap is wired into."""
        ...


recomputed_modules: WeakSet[nn.Module] = WeakSet()
"""Modules whose output a probe of ours is about to replace with its own."""

Direction = Literal["fwd", "bwd"]
Wire = Callable[["Tap"], Wired]


@dataclass(frozen=True)
class _At:
    """A PyTorch hook in the module that was at a place when the tap was wired."""

    place: Place
    module: nn.Module
    handle: RemovableHandle

    def remove(self) -> None:
        self.handle.remove()

    @property
    def moved(self) -> bool:
        return self.place.module is not self.module


class HeldHooks(NamedTuple):
    """The hooks of a tap at one time: TransformerLens' handles, and what PyTorch calls."""

    fwd: tuple[LensHandle, ...] = ()
    bwd: tuple[LensHandle, ...] = ()
    forward: tuple[tuple[int, Callable], ...] = ()
    backward: tuple[tuple[int, Callable], ...] = ()


_LAYER = re.compile(r"(?:^|\.)blocks\.(\d+)\.")


class Tap(HookPoint):
    """A `HookPoint` that is connected to its place in the model only while it has hooks.

    Args:
        wire: Connects the tap to its place and returns a handle that disconnects it.
        patch_rows: The `PatchRows` by which hooks see its tensor, in a layout of the model's own.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> tap = Tap(output_of(Place(linear)))
        >>> handle = tap.add_hook(lambda tensor, hook: tensor * 0)
        >>> linear(torch.ones(1, 2)).sum().item()
        0.0
        >>> tap.remove_hooks("fwd")
        >>> len(linear._forward_hooks)
        0
    """

    def __init__(self, wire: Wire, *, patch_rows: Any = None) -> None:
        super().__init__()
        self._wire = wire
        self._wired: Wired | None = None
        self.patch_rows = patch_rows
        self.fired = 0
        """How many times the tap's tensor has passed through it."""
        self.asleep = False
        """Whether what passes its place is not its tensor, so that its hooks must not see it."""
        self.wired_taps: WiredTaps[Tap] = WiredTaps()
        """Those of its model, with this one among them while it is wired."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a plain attribute: a tap has no parameters or submodules to look for every time."""
        object.__setattr__(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        self.fired += 1
        return x

    def layer(self) -> int:
        """The block that the tap is in, of whichever stack: 1 in ``vision_encoder.blocks.1...``.

        Raises:
            ValueError: The tap is in no block.

        Example:
            >>> tap = Tap(output_of(Place(nn.Linear(2, 2))))
            >>> tap.name = "vision_encoder.blocks.1.attn.hook_pattern"
            >>> tap.layer()
            1
        """
        found = _LAYER.search(str(self.name))
        if found is None:
            raise ValueError(
                f"Expected a hook point of a block, such as 'blocks.0.hook_attn_out', but "
                f"{self.name!r} is in none, so it has no layer."
            )
        return int(found[1])

    def add_hook(self, hook: Any, dir: Direction = "fwd", *args: Any, **kwargs: Any) -> LensHandle:
        """As `HookPoint.add_hook`; the first hook wires the tap into the model.

        Raises:
            TypeError: The hook is no function that can be called as ``hook(tensor, hook=point)``.
        """
        check_hook(hook, self.name)
        return self.attach(hook, dir, *args, **kwargs)

    def attach(self, hook: Any, dir: Direction, *args: Any, **kwargs: Any) -> LensHandle:
        """As `add_hook`, with a hook that has been checked."""
        handle = super().add_hook(partial(answer_of, hook), dir, *args, **kwargs)
        handle.user_hook = hook
        try:
            self._follow_hooks()
        except BaseException:  # a tap whose place is gone keeps no hook that would never fire
            handle.hook.remove()
            getattr(self, f"{dir}_hooks").remove(handle)
            raise
        return handle

    def remove_hooks(self, dir: Direction | Literal["both"] = "fwd", *args: Any, **kwargs: Any):
        """As `HookPoint.remove_hooks`; with the last hook the tap leaves the model."""
        super().remove_hooks(dir, *args, **kwargs)
        self._follow_hooks()

    @property
    def held(self) -> HeldHooks:
        """The hooks that are set."""
        return HeldHooks(
            tuple(self.fwd_hooks),
            tuple(self.bwd_hooks),
            tuple(self._forward_hooks.items()),
            tuple(self._backward_hooks.items()),
        )

    @held.setter
    def held(self, hooks: HeldHooks) -> None:
        self.fwd_hooks, self.bwd_hooks = list(hooks.fwd), list(hooks.bwd)
        for registered, items in (
            (self._forward_hooks, hooks.forward),
            (self._backward_hooks, hooks.backward),
        ):
            registered.clear()
            registered.update(items)
        self._follow_hooks()

    def rewire(self) -> None:
        """Leave the module that the tap is in for the one that is now at its place."""
        if self._wired is not None:
            self._wired.remove()
            self._wired = self._wire(self)

    def _follow_hooks(self) -> None:
        """Be in the model if there are hooks, else out of it."""
        if bool(self.fwd_hooks or self.bwd_hooks) == (self._wired is not None):
            return
        if self._wired is None:
            self._wired = self._wire(self)
            self.wired_taps.add(self)
        else:
            wired, self._wired = self._wired, None
            self.wired_taps.discard(self)
            wired.remove()

    @property
    def step(self) -> Any:  # a Step, or None
        """Which positions its tensor is of, where a part of a sequence may come by."""
        return self.wired_taps.step

    @property
    def only_reads(self) -> bool:
        """Whether all hooks are known to change nothing: they are marked with this name."""
        return all(getattr(handle.user_hook, "only_reads", False) for handle in self.fwd_hooks)

    @property
    def wired(self) -> bool:
        """Whether the tap is in the model."""
        return self._wired is not None

    @property
    def moved(self) -> bool:
        """Whether the tap is in a module that is no longer the one at its place."""
        return self._wired is not None and self._wired.moved


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


def output_of(place: Place, *, view: View | None = None) -> Wire:
    """Wire a tap to a module's output: a tensor, or the first one of several.

    The PyTorch hook is put in front of those already there, so that whatever Hugging Face records
    of this module (hidden states that a projector selects) is what the tap's hooks returned.
    """
    return Bound(_wire_output, place, view)


def _wire_output(place: Place, view: View | None, tap: Tap) -> Wired:
    module = place.module
    # A norm that a probe computes again is the probe's own output: the tap comes after it.
    first = module not in recomputed_modules
    hook = Bound(_pass_output, tap, view)
    return _At(place, module, module.register_forward_hook(hook, prepend=first))


def _pass_output(tap: Tap, view: View | None, _module: nn.Module, _args: Any, output: Any) -> Any:
    answer = through(tap, output if isinstance(output, Tensor) else output[0], view)
    return None if answer is None else _with_first(output, answer)


def _with_first(output: Any, answer: Tensor) -> Any:
    """A module's output with another first tensor."""
    if isinstance(output, Tensor):
        return answer
    if isinstance(output, ModelOutput):
        return type(output)(**{**output, next(iter(output)): answer})
    return (answer, *output[1:])


def input_of(
    place: Place, *, keyword: str | None = None, private: bool = False, view: View | None = None
) -> Wire:
    """Wire a tap to a module's input: its first argument, or the keyword argument of that name.

    Args:
        place: Where the module is.
        keyword: The argument's name, where it is not the first one.
        private: Whether the module alone reads that tensor. Elsewhere hooks that may write into it
            in place get a copy: what the module before gave, and what a cache kept of it, stay.
        view: What hooks see of the tensor.
    """

    return Bound(_wire_input, place, _Input(keyword, private, view))


class _Input(NamedTuple):
    keyword: str | None
    private: bool
    view: View | None


def _wire_input(place: Place, which: _Input, tap: Tap) -> Wired:
    module = place.module
    hook = Bound(_pass_input, tap, which, which.keyword or _first_parameter(module))
    return _At(place, module, module.register_forward_pre_hook(hook, with_kwargs=True))


def _pass_input(
    tap: Tap, which: _Input, name: str, _module: nn.Module, args: tuple, kwargs: dict
) -> Any:
    value = args[0] if args else kwargs[name]
    given = value if which.private or tap.only_reads else _twin(value)
    answer = through(tap, given, which.view)
    if answer is None:
        if given is value:
            return None
        answer = given
    return ((answer, *args[1:]), kwargs) if args else (args, {**kwargs, name: answer})


def _twin(value: Tensor) -> Tensor:
    """A copy with the strides of the original, on which the model computes the same bits."""
    copy = value.clone()
    if copy.stride() == value.stride() or 0 in value.stride():
        return copy
    return torch.empty_strided(
        value.shape, value.stride(), dtype=value.dtype, device=value.device
    ).copy_(value)


def _first_parameter(module: nn.Module) -> str:
    return _first_parameter_of(type(module))


@lru_cache
def _first_parameter_of(module_class: type[nn.Module]) -> str:
    _self, first, *_ = inspect.signature(module_class.forward).parameters
    return first


def shared_input_of(place: Place, *, view: View | None = None) -> Wire:
    """Wire a tap to an input that the caller goes on using (a residual stream before its norm).

    Replacing the argument would change the norm's input and leave the residual branch as it was.
    So what hooks answer is put into the tensor that both branches share.
    """
    return Bound(_wire_shared_input, place, view)


def _wire_shared_input(place: Place, view: View | None, tap: Tap) -> Wired:
    module = place.module
    hook = Bound(_pass_shared_input, tap, view, _first_parameter(module))
    # First, since the input alone may be replaced too (`hook_mlp_in`).
    handle = module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
    return _At(place, module, handle)


def _pass_shared_input(
    tap: Tap, view: View | None, name: str, _module: nn.Module, args: tuple, kwargs: dict
) -> None:
    shared = args[0] if args else kwargs[name]
    if torch.is_grad_enabled():
        # Hooks see a copy, which stays as it was for backward; they may also change the gradient
        # alone, so their answer always counts.
        copy = shared.clone()
        answer = through(tap, copy, view)
        shared.copy_(copy if answer is None else answer)
        return
    answer = through(tap, shared, view)
    if answer is not None:  # other memory, so that what a cache kept is not overwritten
        shared.data = answer


def through(tap: Tap, value: Tensor, view: View | None) -> Tensor | None:
    """The tap's answer in the model's layout, or None where the model's own tensor stands."""
    if tap.asleep:
        return None
    if view is None:
        answer = tap(value)
        return None if answer is value else answer
    answer, changed = fire(tap, view.show(value))
    # With gradients, what hooks saw must be on the way from the input to the output.
    return view.put_back(answer, value) if changed or torch.is_grad_enabled() else None

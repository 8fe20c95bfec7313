"""What a hook function is, and what it may answer: checked once, for every hook point."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

HookFunction = Callable[..., Tensor | None]


def check_hook(hook: Any, name: str | None) -> None:
    """Refuses what cannot be called as ``hook(tensor, hook=point)``.

    Args:
        hook: The hook function.
        name: Where it is set, for the message.

    Raises:
        TypeError: It cannot be called so.

    Example:
        >>> check_hook(3, "hook_embed")
        Traceback (most recent call last):
        TypeError: Expected a hook function fn(tensor, hook) for 'hook_embed', got 3.
    """
    if not callable(hook):
        raise TypeError(f"Expected a hook function fn(tensor, hook) for {name!r}, got {hook!r}.")
    if isinstance(hook, FunctionType) and _is_usual(hook):
        return
    try:
        signature = inspect.signature(hook)
    except ValueError:  # some functions written in C have none
        return
    try:
        signature.bind(None, hook=None)
    except TypeError as error:
        called = getattr(hook, "__name__", type(hook).__name__)
        raise TypeError(
            f"Expected a hook function fn(tensor, hook) for {name!r}, but {called}{signature} "
            f"cannot be called as fn(tensor, hook=...): {error}."
        ) from None


def _is_usual(hook: FunctionType) -> bool:
    """Whether it is ``fn(tensor, hook)``, as nearly all are; reading a signature takes longer."""
    code, n_defaults = hook.__code__, len(hook.__defaults__ or ())
    return (
        code.co_varnames[1:2] == ("hook",)
        and code.co_argcount - n_defaults <= 2 <= code.co_argcount
        and code.co_posonlyargcount < 2
        and not code.co_kwonlyargcount
    )


def answer_of(fn: HookFunction, tensor: Tensor, hook: HookPoint) -> Tensor | None:
    """Calls a hook function and holds what it answers against the tensor that it was given.

    Args:
        fn: The hook function.
        tensor: The activation, or the gradient.
        hook: The hook point.

    Returns:
        None, or a tensor of the shape and the dtype of the one that the function was given.

    Raises:
        TypeError: The answer is no tensor of numbers.
        ValueError: It has another shape, or is on another device.

    Example:
        >>> point = HookPoint()
        >>> answer_of(lambda tensor, hook: tensor.double() * 2, torch.ones(2), point)
        tensor([2., 2.])
    """
    answer: Any = fn(tensor, hook=hook)
    if answer is None or answer is tensor:
        return answer
    if isinstance(answer, tuple) and len(answer) == 1:  # as PyTorch has it for gradients
        [answer] = answer
    expected = f"Expected the hook at {hook.name!r} to answer with None or a tensor"
    if not isinstance(answer, Tensor) or answer.dtype == torch.bool or answer.is_complex():
        got = f"a {answer.dtype} tensor" if isinstance(answer, Tensor) else type(answer).__name__
        raise TypeError(f"{expected} of real numbers like the {tensor.dtype} one given, got {got}.")
    if answer.shape != tensor.shape:
        raise ValueError(
            f"{expected} of shape {list(tensor.shape)}, as the one given, got {list(answer.shape)}."
        )
    if answer.device != tensor.device:
        raise ValueError(f"{expected} on {tensor.device}, as the one given, got {answer.device}.")
    return answer.to(tensor.dtype)

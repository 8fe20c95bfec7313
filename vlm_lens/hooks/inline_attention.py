"""The inside of an attention that computes its pattern itself, such as BLOOM's.

There is no attention function to put another one in the place of. Its forward runs under a mode
that sees its one softmax: what goes in are the scores, what comes out is the pattern. Both are the
model's own tensors, so that a hook that only reads changes not a bit.
"""

from __future__ import annotations

import sys
from functools import partial
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from vlm_lens.hooks.attention import AttentionTaps
from vlm_lens.hooks.place import Place


class InlineAttentionProbe(AttentionTaps):
    """The taps on scores and pattern of one attention module; see `AttentionProbe`.

    Args:
        place: Where the attention module is, whose forward calls softmax once.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._handles: list[RemovableHandle] = []
        self._modes: list[_OwnSoftmax] = []

    def _put_in(self) -> None:
        module: nn.Module = self.module
        self._handles = [
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave, prepend=True, always_call=True),
        ]

    def _take_out(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _enter(self, module: nn.Module, _args: tuple) -> None:
        mode = _OwnSoftmax(self, type(module).forward.__code__)
        mode.__enter__()
        self._modes.append(mode)

    def _leave(self, _module: nn.Module, _args: tuple, _output: Any) -> None:
        if self._modes:
            self._modes.pop().__exit__(None, None, None)

    def on_softmax(self, func: Any, scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Fire the taps around the softmax, and keep both if asked to remember."""
        scores = self.scores(scores) if self.scores.has_hooks() else scores
        # Hooks see the pattern in the model's dtype, as the product with the values does.
        pattern = func(scores, *args, **kwargs).to(scores.dtype)
        if self.remembers:
            self.last_call = partial(tuple, (scores.detach(), pattern.detach()))
        return self.pattern(pattern) if self.pattern.has_hooks() else pattern


class _OwnSoftmax(TorchFunctionMode):
    """Passes the softmax of one forward on, and none that a hook calls meanwhile.

    Args:
        probe: What is told of it.
        forward: The code of the forward.
    """

    def __init__(self, probe: InlineAttentionProbe, forward: CodeType) -> None:
        super().__init__()
        self._probe, self._forward = probe, forward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        kwargs = kwargs or {}
        is_softmax = func in (F.softmax, torch.softmax, Tensor.softmax)
        if not is_softmax or not _is_in(self._forward):
            return func(*args, **kwargs)
        return self._probe.on_softmax(func, *args, **kwargs)


_CALL = vars(nn.Module)["_call_impl"].__code__


def _is_in(forward: CodeType) -> bool:
    """Whether a forward itself is running, and not one of its submodules, where hooks are."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code not in (forward, _CALL):
        frame = frame.f_back
    return frame is not None and frame.f_code is forward

"""Parts of a model that are not run again, because nothing before them has changed.

When only later neurons are masked, everything before them computes what it computed before. A
`Replay` remembers the outputs of chosen modules from one forward and, in later ones, returns them
in place of running the modules. Modules between the inputs and those may be skipped altogether:
they return what they were given, and nothing reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from vlm_lens.hooks import Place
from vlm_lens.hooks.bound import Bound
from vlm_lens.neurons.neuron import split_name
from vlm_lens.parts import text_for

if TYPE_CHECKING:
    from vlm_lens.model import HookedVLM

_TOWERS = ("vision_encoder", "audio_encoder")


@dataclass(eq=False)
class Replay:
    """Outputs of modules, kept in one forward and returned in later ones.

    Attributes:
        kept: Modules whose outputs are returned again.
        skipped: Modules in front of them, whose outputs nothing reads then.
        outputs: What was kept, by module.

    Example:
        >>> import torch
        >>> first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        >>> replay = Replay(kept=[second], skipped=[first])
        >>> with replay.running():
        ...     before = second(first(torch.ones(1, 2)))
        >>> with replay.running(copies=3):
        ...     torch.equal(second(first(torch.zeros(3, 2))), before.repeat(3, 1))
        True
    """

    kept: list[nn.Module]
    skipped: list[nn.Module]
    outputs: dict[nn.Module, Any] = field(default_factory=dict)
    _seen: dict[nn.Module, bool] = field(default_factory=dict)
    _is_tuple: dict[nn.Module, bool] = field(default_factory=dict)
    _has_run: bool = False

    @contextmanager
    def running(self, *, copies: int = 1) -> Iterator[None]:
        """Keeps outputs if there are none yet, else returns them.

        Args:
            copies: How many copies of the batch, one behind the other, run at once.
        """
        with ExitStack() as stack:
            if self._has_run:
                # What did not run then (no image, no projector) will not run now.
                for module in self.outputs:
                    instead = partial(self._replayed, module, copies)
                    stack.enter_context(_forward_replaced(module, instead))
                for module in self._is_tuple:
                    instead = partial(self._passed, module)
                    stack.enter_context(_forward_replaced(module, instead))
            else:
                for noted in (self.outputs, self._seen, self._is_tuple):
                    noted.clear()  # of a run that broke off
                for module in self.kept:
                    stack.enter_context(self._keeping(module, copies))
                for module in self.skipped:
                    stack.enter_context(_hooked(module, self._note_kind))
            yield
            self._has_run = True

    def _keeping(self, module: nn.Module, copies: int) -> Any:
        return _hooked(module, Bound(self._keep, copies))

    def _keep(self, copies: int, module: nn.Module, _args: Any, output: Any) -> None:
        if module in self.outputs:
            raise RuntimeError(
                f"{type(module).__name__} runs more than once in a forward, so that its output "
                "cannot be returned again: measure with reuse=False."
            )
        # Copies are alike up to here.
        self.outputs[module] = tree_map_only(Tensor, partial(_first_copy, copies), output)
        # Only these are skipped: without an image Mllama leaves blocks out, perhaps a kept one.
        self._is_tuple |= self._seen

    def _note_kind(self, module: nn.Module, _args: Any, output: Any) -> None:
        self._seen[module] = isinstance(output, tuple)

    def _replayed(self, module: nn.Module, copies: int, *args: Any, **kwargs: Any) -> Any:
        axis = _axis_of_copies(copies, _first_argument(args, kwargs))
        return tree_map_only(Tensor, partial(_repeated, copies, axis), self.outputs[module])

    def _passed(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        given = _first_argument(args, kwargs)
        return (given,) if self._is_tuple[module] else given


def _first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _axis_of_copies(copies: int, value: Tensor) -> int:
    """The first axis, or the second where all images are one sequence in a batch of one."""
    return int(len(value) % copies != 0)


def _first_copy(copies: int, value: Tensor) -> Tensor:
    # A clone: others may write into what goes on, and it lets go of the memory of other copies.
    axis = _axis_of_copies(copies, value)
    return value.detach().narrow(axis, 0, value.shape[axis] // copies).clone()


def _repeated(copies: int, axis: int, value: Tensor) -> Tensor:
    return torch.cat([value] * copies, dim=axis)  # a copy, whoever writes into it


@contextmanager
def _hooked(module: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = vars(module).get("forward")  # accelerate's, in a model that is spread over devices
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before


def replay_below(model: HookedVLM, names: Sequence[str], *, generating: bool = False) -> Replay:
    """What need not run again when only neurons at these hook points change.

    Where all of them are in the language model, the projector's output and the output of the block
    below the lowest of them are kept, and the encoder, the Q-Former and all earlier blocks are
    skipped. Where the lowest is in the projector or the Q-Former, the towers' blocks are kept;
    where it is in a tower, that tower's blocks below it.

    Args:
        model: The model.
        names: Hook names of what changes.
        generating: Whether it is for `generate`, in which every block of the language model has to
            fill its key-value cache, and so none is left out.
    """
    architecture, parts = model.architecture, model.architecture.parts()
    stacks = {
        name: list(Place(model.hf_model, paths.blocks).module.children())
        for name, paths in parts.items()
    }
    before_text = [name for name in (*_TOWERS, "qformer") if name in stacks]
    # A tower's further layers (Mllama's global ones) count as the tower.
    components = {split_name(name)[0].split(".")[0] for name in names}
    if components & {*before_text, "projector"}:
        towers = [name for name in _TOWERS if name in stacks]
        kept = [block for name in towers for block in stacks[name][: _lowest(names, name)]]
        return Replay(kept, [])
    projector = architecture.projector
    kept = [] if projector is None else [Place(model.hf_model, projector.module).module]
    if projector is not None and projector.deepstack is not None:
        kept += Place(model.hf_model, projector.deepstack).module.children()
    skipped = [block for name in before_text for block in stacks[name]]
    if not generating and not text_for(model, "its blocks").has_encoder:
        below = stacks[""][: _lowest(names, "language_model")]
        kept, skipped = kept + below[-1:], skipped + below[:-1]
    return Replay(kept, skipped)


def _lowest(names: Sequence[str], component: str) -> int | None:
    """The lowest block of a component that has one of the hook points; None where none has."""
    found = [split_name(name)[:2] for name in names]
    layers = [layer for part, layer in found if part == component and layer is not None]
    outside = any(part == component and layer is None for part, layer in found)
    return 0 if outside else min(layers, default=None)


def in_copies(arguments: Mapping[str, Any], copies: int) -> dict[str, Any]:
    """A batch several times, one copy behind the other, as `Replay.running` expects it.

    Args:
        arguments: Keyword arguments of a model's forward.
        copies: How many.

    Example:
        >>> import torch
        >>> in_copies({"input_ids": torch.tensor([[1, 2]])}, 2)["input_ids"].tolist()
        [[1, 2], [1, 2]]
    """
    if copies == 1:
        return dict(arguments)
    return {
        name: _repeated(copies, 0, value) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }

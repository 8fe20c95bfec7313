"""Edits of activations: neurons set to something, scaled, or moved along a direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlm_lens.inputs import Inputs
from vlm_lens.inputs.owners import NO_SAMPLE, PositionOwners, part_of
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.checks import finite_number

Value = Literal["zero", "min"] | int | float
"""What neurons become: 0, the smallest activation of their layer, or a number."""

Hooks = list[tuple[Any, Callable[..., Any]]]


@runtime_checkable
class Edit(Protocol):
    """What is done to a model while it runs on some inputs, prompts and answers alike."""

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points that are changed."""
        ...

    def hooks(self, inputs: Inputs) -> Hooks:
        """Hooks for runs on these inputs, as ``model.hooks(...)`` takes them."""
        ...


@dataclass(frozen=True, eq=False)
class Set:
    """Sets neurons to something else at all positions: without it, how does the model do?

    Attributes:
        neurons: Which.
        to: What they become. "min" is, as in MINER's code, the smallest activation that any neuron
            of the layer has at that moment; here in the same sample, padding set aside, so that it
            does not depend on the batch.
        others: Whether all others are set instead, at `sites`.
        sites: For `others`; by default the hook points of the neurons.

    Raises:
        ValueError: `to` is neither "zero" nor "min" nor a finite number, or there are no hook
            points to set others at.

    Example:
        >>> neurons = NeuronSet.from_indices({"blocks.0.mlp.hook_act": [3]})
        >>> Set(neurons).names
        ('blocks.0.mlp.hook_act',)
    """

    neurons: NeuronSet
    to: Value = "zero"
    others: bool = False
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.to not in ("zero", "min"):
            finite_number("the value, unless 'zero' or 'min',", self.to)
        if self.others and not self.names:
            raise ValueError("the complement of no neurons needs sites to mask all neurons at")

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points that are changed."""
        return (self.sites or self.neurons.names) if self.others else self.neurons.names

    def hooks(self, inputs: Inputs) -> Hooks:
        """Hooks for runs on these inputs."""
        indices = self.neurons.indices
        none = torch.zeros(0, dtype=torch.long)
        owners = PositionOwners.of_run(inputs, inputs.token_map)
        return [(name, _SetHook(self, indices.get(name, none), owners)) for name in self.names]


@dataclass(frozen=True, eq=False)
class Scale:
    """Multiplies neurons with a factor at all positions: with 0 they are gone, with 2 doubled.

    Attributes:
        neurons: Which.
        factor: A finite number.
    """

    neurons: NeuronSet
    factor: int | float

    def __post_init__(self) -> None:
        finite_number("factor", self.factor)

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points that are changed."""
        return self.neurons.names

    def hooks(self, inputs: Inputs) -> Hooks:  # noqa: ARG002
        """Hooks for runs on these inputs."""
        return list(self.neurons.scale(self.factor))


@dataclass(frozen=True, eq=False)
class Add:
    """Adds a vector to the activations of hook points at all positions: steering.

    Attributes:
        directions: A vector for each hook point.
        factor: How much of it.
    """

    directions: Mapping[str, Float[Tensor, " _d"]]
    factor: int | float = 1.0

    def __post_init__(self) -> None:
        finite_number("factor", self.factor)

    @property
    def names(self) -> tuple[str, ...]:
        """The hook points that are changed."""
        return tuple(self.directions)

    def hooks(self, inputs: Inputs) -> Hooks:  # noqa: ARG002
        """Hooks for runs on these inputs."""

        def add(tensor: Float[Tensor, "*pos d"], hook: Any) -> Tensor:
            direction = self.directions[str(hook.name)]
            return tensor + self.factor * direction.to(tensor.device, tensor.dtype)

        return [(name, add) for name in self.directions]


class _SetHook:
    def __init__(self, edit: Set, indices: Tensor, owners: PositionOwners) -> None:
        self._edit, self._indices, self._owners = edit, indices, owners
        self._chosen: Bool[Tensor, " d"] | None = None

    def __call__(self, tensor: Float[Tensor, "batch pos d"], hook: Any) -> Tensor:
        if self._chosen is None:
            self._chosen = self._mask(tensor.shape[-1], str(hook.name)).to(tensor.device)
        return torch.where(self._chosen, self._fill(tensor, str(hook.name)), tensor)

    def _mask(self, size: int, name: str) -> Bool[Tensor, " d"]:
        if len(self._indices) and int(self._indices.max()) >= size:
            raise IndexError(
                f"neuron {name}[{int(self._indices.max())}] does not exist: {name!r} has {size} "
                "neurons. Check that the neurons come from this model and this site."
            )
        mask = torch.full((size,), self._edit.others)
        mask[self._indices] = not self._edit.others
        return mask

    def _fill(self, tensor: Tensor, name: str) -> Tensor:
        value = self._edit.to
        if value != "min":
            return tensor.new_tensor(0.0 if value == "zero" else float(value))
        real = self._real(name, *tensor.shape[:2])
        real[~real.any(1)] = True  # of nobody's row, whatever there is
        tensor = tensor.masked_fill(~real[..., None].to(tensor.device), torch.inf)
        return tensor.amin((1, 2), keepdim=True)

    def _real(self, name: str, n_rows: int, n_positions: int) -> Bool[Tensor, "row pos"]:
        """Which positions there are; new ones that come after a prompt all are."""
        prompt = self._owners.real.get(part_of(name))
        if prompt is not None and prompt.shape[1] != n_positions:
            return torch.ones(n_rows, n_positions, dtype=torch.bool)
        return self._owners.of(name, n_rows, n_positions) != NO_SAMPLE

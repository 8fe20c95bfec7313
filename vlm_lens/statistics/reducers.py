"""What `collect` keeps of each hook point: moments by token type, and top samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from vlm_lens.inputs.token_types import TokenType
from vlm_lens.passes.positions import Positions
from vlm_lens.passes.reducers import Beside, Reading, Reducer, State
from vlm_lens.statistics.attention import received
from vlm_lens.statistics.moments import Moments
from vlm_lens.statistics.reduce import moments_of, peaks_of
from vlm_lens.statistics.top_samples import TopSamples


def _weights(pattern: Tensor, name: str, positions: Positions) -> Tensor:
    """The attention that each position of all rows receives."""
    n_rows, _, n_queries, _ = pattern.shape
    real = positions.real_rows(name, n_rows, n_queries).to(pattern.device)
    return received(pattern, real).flatten()


_ATTENTION = Beside("weights", ("attn.hook_pattern",), _weights)


@dataclass(frozen=True)
class MomentsByType(Reducer):
    """The moments of positions, for each combination of token types that there is.

    Attributes:
        types: The token types.
        active_above: From which activation on a neuron is active.
        beside: Where positions are weighed with the attention that they receive, the pattern.
    """

    types: tuple[TokenType, ...]
    active_above: int | float = 0.0
    beside: tuple[Beside, ...] = ()

    @classmethod
    def of(
        cls, types: tuple[TokenType, ...], *, active_above: int | float, attention: bool
    ) -> MomentsByType:
        """With or without attention."""
        return cls(types, active_above, (_ATTENTION,) if attention else ())

    def __call__(self, reading: Reading) -> State:
        activations = reading.activation.flatten(0, 1)
        weights = reading.beside.get("weights")
        state: State = {}
        for part in reading.parts(self.types):
            found = moments_of(
                activations, part.rows, active_above=self.active_above, weights=weights
            )
            state |= _packed(part.types, found)
        return state

    def plus(self, one: State, other: State) -> State:
        both, more = moments_in(one), moments_in(other)
        state: State = {}
        for types in {**both, **more}:
            here = [found[types] for found in (both, more) if types in found]
            state |= _packed(types, reduce(Moments.plus, here))
        return state

    def is_finite(self, state: State) -> bool:
        return all(moments.is_finite for moments in moments_in(state).values())


def _packed(types: tuple[int, ...], moments: Moments) -> State:
    values = {one.name: getattr(moments, one.name) for one in fields(moments)}
    key = "+".join(map(str, types))
    return {
        f"{key}/{name}": torch.tensor(value) if isinstance(value, int) else value
        for name, value in values.items()
        if value is not None
    }


def moments_in(state: State) -> Mapping[tuple[int, ...], Moments]:
    """The moments in a state, by the places of their token types in the list of all."""
    values: dict[str, dict[str, Any]] = {}
    for name, tensor in state.items():
        key, _, field = name.partition("/")
        values.setdefault(key, {})[field] = int(tensor) if field == "count" else tensor
    found = {tuple(map(int, key.split("+"))): Moments(**its) for key, its in values.items()}
    return dict(sorted(found.items()))  # a file has its tensors in another order


@dataclass(frozen=True)
class TopOf(Reducer):
    """The samples in which each neuron is most active.

    Attributes:
        k: How many.
        over: The tokens whose activations count.
    """

    k: int
    over: TokenType

    def __call__(self, reading: Reading) -> State:
        top = TopSamples(self.k)
        for part in reading.parts((self.over,)):
            peaks = peaks_of(reading.activation.flatten(0, 1), part)
            numbers = [reading.batch.numbers[i] for i in peaks.samples]
            top = top.plus(peaks.values, numbers, peaks.positions)
        return top.state

    def plus(self, one: State, other: State) -> State:
        return TopSamples.of(self.k, one).merge(TopSamples.of(self.k, other)).state

    def is_finite(self, state: State) -> bool:  # noqa: ARG002  keys are whole numbers
        return True

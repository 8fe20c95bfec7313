"""Gradient times activation of each neuron: what CAN and its baselines reduce to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.analyses.token_pool import TokenPool, Tokens
from vlm_lens.passes.batch import Batch
from vlm_lens.passes.reducers import Reading, Reducer, State


@dataclass(frozen=True, kw_only=True)
class Importance(Reducer):
    """``|gradient| ** alpha * |activation| ** activation_power``, and how positions are pooled.

    Attributes:
        alpha: Exponent of the gradient; with 0 there is no gradient, and no backward.
        activation_power: Exponent of the activation.
        tokens: How a sample's positions become one number; see `TokenPool`.
        first_token: Whether the first token of the language model's sequences counts.

    Raises:
        ValueError: An exponent is not from 0 to 1, both are 0, `tokens` is unknown, or nothing
            is left to look at.

    Example:
        >>> Importance(alpha=0.5).at(torch.tensor([-3.0]), torch.tensor([-4.0]))
        tensor([6.])
    """

    alpha: int | float
    activation_power: int | float = 1.0
    tokens: Tokens = "max"
    first_token: bool = True

    def __post_init__(self) -> None:
        for name in ("alpha", "activation_power"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"expected {name} from 0 to 1, got {value!r}")
        if self.alpha == self.activation_power == 0:
            raise ValueError("with alpha and activation_power 0 every neuron scores alike")
        if self.tokens not in get_args(Tokens):
            raise ValueError(f"expected tokens of {list(get_args(Tokens))}, got {self.tokens!r}")
        if self.tokens == "last" and not self.first_token:
            raise ValueError(
                "first_token=False leaves out a position that tokens='last' does not look at: use "
                "one of the two"
            )

    @property
    def gradient(self) -> bool:
        return self.alpha > 0

    def __call__(self, reading: Reading) -> State:
        pool = reading.positions.once(("pool", self), self._pool)
        tensors = [t for t in (reading.activation, reading.gradient) if t is not None]
        return {"sum": pool(reading.site, self.at, *tensors).double()}

    def _pool(self, batch: Batch) -> TokenPool:
        return TokenPool(batch, self.tokens, first_token=self.first_token)

    def at(
        self,
        activation: Float[Tensor, "*pos d"],
        gradient: Float[Tensor, "*pos d"] | None = None,
        *,
        out: Float[Tensor, "*pos d"] | None = None,
    ) -> Float[Tensor, "*pos d"]:
        """The importance at each position, at least in float32; written into `out` if given."""
        if out is None:
            wide = torch.promote_types(activation.dtype, torch.float32)
            out = torch.empty_like(activation, dtype=wide)
        if gradient is None:
            return _power(activation, self.activation_power, out)
        _power(gradient, self.alpha, out)
        if self.activation_power == 1:
            return out.mul_(activation).abs_()
        return out.mul_(_power(activation, self.activation_power, torch.empty_like(out)))


def _power(
    x: Float[Tensor, "*pos d"], exponent: int | float, out: Float[Tensor, "*pos d"]
) -> Float[Tensor, "*pos d"]:
    """|x| to a power, in the precision of `out`."""
    if x.dtype == out.dtype:
        torch.abs(x, out=out)
    else:
        out.copy_(x).abs_()
    if exponent == 0.5:
        return out.sqrt_()  # a little faster
    return out if exponent == 1 else out.pow_(exponent)

"""Activations in one byte each, between a neuron's smallest and largest value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

STEPS = 255


@dataclass(frozen=True, eq=False)
class Quantised:
    """Activations of some neurons, rounded to 256 values each.

    Attributes:
        codes: From 0, a neuron's smallest value, to 255, its largest.
        low: The smallest values, float32.
        high: The largest.

    Example:
        >>> values = np.array([[0.0, 0.1, 1.0]], dtype=np.float32)
        >>> packed = quantised(values)
        >>> packed.codes.tolist(), packed.values.round(3).tolist()
        ([[0, 26, 255]], [[0.0, 0.102, 1.0]])
        >>> bool(np.abs(packed.values - values).max() <= packed.error[0])
        True
    """

    codes: UInt8[np.ndarray, "neuron entry"]
    low: Float[np.ndarray, " neuron"]
    high: Float[np.ndarray, " neuron"]

    @property
    def values(self) -> Float[np.ndarray, "neuron entry"]:
        """The activations again, each off by at most `error`."""
        steps = self.codes.astype(np.float64) / STEPS
        span = self.high.astype(np.float64) - self.low
        return self.low[:, None] + steps * span[:, None]

    @property
    def error(self) -> Float[np.ndarray, " neuron"]:
        """By how much a value may be off: half a step, (largest - smallest) / 510."""
        return (self.high.astype(np.float64) - self.low) / (2 * STEPS)


def quantised(values: Float[np.ndarray, "neuron entry"]) -> Quantised:
    """Rounds activations to one byte.

    Raises:
        ValueError: One is infinite or NaN.
    """
    if not np.isfinite(values).all():
        raise ValueError("expected finite activations, but some are infinite or NaN")
    low, high = values.min(1).astype(np.float32), values.max(1).astype(np.float32)
    span = high.astype(np.float64) - low
    scale = np.divide(STEPS, span, out=np.zeros_like(span), where=span > 0)
    codes = np.rint((values.astype(np.float64) - low[:, None]) * scale[:, None])
    return Quantised(codes.astype(np.uint8), low, high)

"""A byte for each activation is as near as it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlm_lens.explorer.quantise import quantised

VALUES = st.floats(-1e4, 1e4, width=32)


@settings(deadline=None, max_examples=60)
@given(arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=VALUES))
def test_values_are_off_by_at_most_the_bound(values: np.ndarray) -> None:
    packed = quantised(values)
    assert packed.codes.dtype == np.uint8
    span = values.max(1).astype(np.float64) - values.min(1)
    np.testing.assert_allclose(packed.error, span / 510)
    off = np.abs(packed.values - values)
    assert (off <= packed.error[:, None] * (1 + 1e-6) + 1e-12).all()


def test_the_smallest_and_the_largest_are_exact() -> None:
    values = np.array([[0.1, -3.7, 2.9], [5.0, 5.0, 5.0]], dtype=np.float32)
    packed = quantised(values)
    np.testing.assert_array_equal(packed.values.min(1).astype(np.float32), values.min(1))
    np.testing.assert_array_equal(packed.values.max(1).astype(np.float32), values.max(1))
    assert packed.codes[1].tolist() == [0, 0, 0]


def test_the_bound_is_reached_by_a_value_between_two_steps() -> None:
    values = np.array([[0.0, 0.5, 255.0]], dtype=np.float32)
    packed = quantised(values)
    assert np.abs(packed.values - values).max() == pytest.approx(packed.error[0])


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="infinite or NaN"):
        quantised(np.array([[0.0, bad]], dtype=np.float32))

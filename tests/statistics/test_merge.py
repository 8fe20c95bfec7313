"""Parts of a data set collected apart give what one pass gives, in whatever order they merge."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.statistics.same import assert_identical, assert_same
from tests.statistics.slow import built, samples_of
from vlm_lens.statistics import Moments, NeuronStatistics, TopSamples, collect

OPTIONS: dict[str, Any] = {
    "sites": ["blocks.*.mlp.hook_act", "vision_encoder.blocks.0.mlp.hook_post"],
    "top_k": 2,
    "attention": True,
}
SAMPLES = samples_of("llava")


def shard(start: int, stop: int, **options: Any) -> NeuronStatistics:
    """Samples one by one: in other batches, Hugging Face's own activations differ by rounding."""
    options = {"batch_size": 1, **options}
    return collect(
        built("llava"), SAMPLES[start:stop], first_sample=start, **{**OPTIONS, **options}
    )


def test_shards_in_any_order_are_one_pass() -> None:
    whole = shard(0, 5)
    parts = [shard(0, 1), shard(1, 2, sites=["blocks.*.mlp.hook_act"]), shard(2, 5)]
    # The second sample has no image: it never reaches the encoder.
    parts[1].parameters["sites"] = whole.parameters["sites"]
    for order in permutations(parts):
        first, *rest = order
        for part in rest:
            first = first.merge(part)
        assert_same(first, whole)


def test_samples_in_both_are_refused() -> None:
    with pytest.raises(ValueError, match="samples from 1 on are in both"):
        shard(0, 2).merge(shard(1, 3))


@pytest.mark.parametrize(
    "options", [{"top_k": 3}, {"active_above": 1.0}, {"token_types": ["any"]}, {"answers": "given"}]
)
def test_what_was_collected_otherwise_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"different {next(iter(options))}"):
        shard(0, 2).merge(shard(2, 3, **options))


def test_another_model_is_refused() -> None:
    other = shard(2, 3)
    other.parameters["provenance"]["model"] = "another"
    with pytest.raises(ValueError, match="different models"):
        shard(0, 2).merge(other)


def test_saved_and_loaded(tmp_path) -> None:
    found = shard(0, 5)
    found.save(tmp_path)
    again = NeuronStatistics.load(tmp_path)
    assert_identical(found, again)
    assert repr(found) == repr(again)
    (tmp_path / "statistics.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot read"):
        NeuronStatistics.load(tmp_path)


# The formulas, on any numbers ---------------------------------------------------------------------

NUMBERS = st.floats(-1e4, 1e4, width=32)
ROWS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12)


def moments(rows: list[tuple[float, float]]) -> Moments:
    return Moments.of(torch.tensor(rows, dtype=torch.float64), active_above=0.5)


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, ROWS)
def test_moments_merge_in_any_order(a: Any, b: Any, c: Any) -> None:
    whole = moments([*a, *b, *c])
    ways = [
        moments(a).plus(moments(b)).plus(moments(c)),
        moments(c).plus(moments(a).plus(moments(b))),
        moments(b).plus(moments(c)).plus(moments(a)),
    ]
    scale = max(1.0, *(abs(x) for row in [*a, *b, *c] for x in row))
    for found in ways:
        assert found.count == whole.count
        for name in ("active", "largest", "smallest"):
            assert torch.equal(getattr(found, name), getattr(whole, name))
        torch.testing.assert_close(found.total, whole.total, rtol=1e-12, atol=1e-10 * scale)
        torch.testing.assert_close(
            found.deviations, whole.deviations, rtol=1e-10, atol=1e-12 * scale**2
        )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([-2.0, -0.0, 0.0, 0.5, 0.5000001, 3.0]), min_size=1, max_size=200),
    st.integers(1, 5),
    st.randoms(),
)
def test_top_samples_do_not_depend_on_the_order(values: list[float], k: int, rng: Any) -> None:
    rows = torch.tensor(values)[:, None]
    numbers = list(range(len(values)))
    best = sorted(numbers, key=lambda n: (-rows[n, 0].item(), n))[:k]
    rng.shuffle(numbers)
    top, other = TopSamples(k), TopSamples(k)
    for place, number in enumerate(numbers):
        one = (rows[number : number + 1], [number], torch.tensor([[number + 7]]))
        top, other = (top.plus(*one), other) if place % 3 else (top, other.plus(*one))
    merged = top.merge(other)
    assert merged.samples[:, 0].tolist() == best
    assert merged.positions[:, 0].tolist() == [number + 7 for number in best]
    assert torch.equal(merged.values[:, 0], rows[best, 0] + 0.0)


def test_another_k_does_not_merge() -> None:
    with pytest.raises(ValueError, match="expected the top 2"):
        TopSamples(2).merge(TopSamples(3))

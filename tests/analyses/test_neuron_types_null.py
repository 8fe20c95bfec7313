"""The chances behind p-values, against all permutations written out."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.analyses.slow_types import at_least, by_drawing, kind_of
from vlm_lens.analyses.neuron_types_null import (
    false_discovery_rates,
    one_more,
    sample_chances,
    tails,
)

LEVELS = st.lists(st.sampled_from([0.0, 1.5, 2.5, 3.5]), min_size=0, max_size=5)
THRESHOLDS = st.sampled_from([1.0, 2.0, 3.0])


def drawn(
    visual: list[float], text: list[float], T: tuple[float, float], need: tuple[int, int]
) -> list[float]:
    """The same as `by_drawing`, one permutation after the other."""
    pool, counts = visual + text, [0, 0, 0, 0]
    for called in combinations(range(len(pool)), len(visual)):
        some = [pool[i] for i in called]
        rest = [pool[i] for i in range(len(pool)) if i not in called]
        counts[kind_of(some, rest, T, need)] += 1
    return [count / sum(counts) for count in counts]


def computed(
    visual: list[float], text: list[float], T: tuple[float, float], need: tuple[int, int]
) -> torch.Tensor:
    pool = visual + text
    above = [torch.tensor([sum(value > level for value in pool)]) for level in T]
    return sample_chances(
        n_visual=torch.tensor([len(visual)]),
        n_text=torch.tensor([len(text)]),
        above_visual=above[0],
        above_text=above[1],
        visual_first=T[0] <= T[1],
        need_visual=need[0],
        need_text=need[1],
    )[:, 0]


@settings(max_examples=150, deadline=None)
@given(LEVELS, LEVELS, st.tuples(THRESHOLDS, THRESHOLDS), st.tuples(*[st.integers(1, 4)] * 2))
def test_chances_are_shares_of_all_permutations(visual: Any, text: Any, T: Any, need: Any) -> None:
    expected = torch.tensor(drawn(visual, text, T, need)).double()
    torch.testing.assert_close(computed(visual, text, T, need), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        torch.tensor(by_drawing(visual, text, T, need)).double(), expected, rtol=1e-6, atol=1e-7
    )


def test_chances_of_a_real_size_are_chances() -> None:
    torch.manual_seed(0)
    n = 2000
    above_visual = torch.randint(0, 400, (n,))
    found = sample_chances(
        n_visual=torch.full((n,), 576),
        n_text=torch.randint(0, 200, (n,)),
        above_visual=above_visual,
        above_text=(above_visual * torch.rand(n)).long(),
        visual_first=True,
        need_visual=4,
        need_text=2,
    )
    assert ((found >= 0) & (found <= 1)).all()
    torch.testing.assert_close(found.sum(0), torch.ones(n, dtype=torch.float64))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.data())
def test_tails_of_independent_draws(chances: list[float], data: Any) -> None:
    n = data.draw(st.integers(0, len(chances)))
    counts = torch.zeros(1, len(chances) + 1, 1, dtype=torch.float64)
    counts[:, 0] = 1
    for chance in chances:
        counts = one_more(counts, torch.tensor([[chance]], dtype=torch.float64))
    found = tails(counts, torch.tensor([[n]])).item()
    written_out = sum(
        torch.tensor([c if yes else 1 - c for c, yes in zip(chances, way, strict=True)])
        .double()
        .prod()
        .item()
        for way in product([True, False], repeat=len(chances))
        if sum(way) >= n
    )
    assert found == pytest.approx(written_out, abs=1e-5)
    assert found == pytest.approx(at_least(n, chances), abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_rates_of_false_discoveries_are_scipys(p_values: list[float]) -> None:
    stats = pytest.importorskip("scipy.stats")
    found = false_discovery_rates(torch.tensor(p_values, dtype=torch.float64))
    expected = stats.false_discovery_control(p_values, method="bh")
    assert found.tolist() == pytest.approx(expected.tolist())

"""The search finds the smallest set, on any curve that only rises, with few measurements."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lens.masking.search import smallest

NEAR = 2  # so many k right below a result are looked at, besides the probes


class Recorder:
    """A test that remembers what it was asked for, and how far its answers were read."""

    def __init__(self, passes: Callable[[int], bool], *, n: int) -> None:
        self.passes, self.n = passes, n
        self.asked: list[list[int]] = []
        self.read: list[int] = []

    def __call__(self, ks: Sequence[int]) -> Iterator[bool]:
        assert len(ks) > 0
        assert list(ks) == sorted(set(ks)), "smallest first, each once"
        assert min(ks) >= 1
        assert max(ks) <= self.n
        self.asked.append(list(ks))
        return self._answers(ks)

    def _answers(self, ks: Sequence[int]) -> Iterator[bool]:
        for k in ks:
            self.read.append(k)
            yield self.passes(k)


searches = st.fixed_dictionaries({"width": st.integers(1, 9), "probes": st.integers(0, 20)})


@given(n=st.integers(1, 20_000), first=st.integers(1, 20_001), options=searches)
def test_finds_the_smallest_where_all_larger_ones_pass_too(n, first, options):
    test = Recorder(lambda k: k >= first, n=n)
    assert smallest(test, n=n, **options) == (first if first <= n else None)
    assert max(map(len, test.asked)) <= options["width"]


@given(n=st.integers(1, 100_000), first=st.integers(1, 100_001), probes=st.integers(0, 20))
def test_a_rising_curve_takes_a_logarithm_of_measurements(n, first, probes):
    test = Recorder(lambda k: k >= first, n=n)
    smallest(test, n=n, probes=probes)
    reached = min(first, n)
    assert len(test.read) <= 2 * math.log2(reached) + 3 + probes + NEAR
    # Galloping and bisecting ask for no k twice; what is looked at below may fall on one of theirs.
    assert max(Counter(test.read).values()) <= 2


@given(n=st.integers(2, 100_000), width=st.integers(2, 16), data=st.data())
def test_a_wider_search_takes_fewer_rounds(n, width, data):
    first = data.draw(st.integers(1, n))
    test = Recorder(lambda k: k >= first, n=n)
    assert smallest(test, n=n, width=width, probes=0) == first
    gallop = math.ceil((math.log2(n) + 2) / width)
    assert len(test.asked) <= gallop + math.log(n) / math.log(width + 1) * 2 + 2


@given(curve=st.lists(st.booleans(), min_size=1, max_size=60), options=searches)
def test_on_any_curve_the_result_passes_and_the_k_before_it_does_not(curve, options):
    test = Recorder(lambda k: curve[k - 1], n=len(curve))
    found = smallest(test, n=len(curve), **options)
    if found is None:
        assert not any(curve[k - 1] for k in test.read)
        assert test.read[-1] == len(curve)
    else:
        assert curve[found - 1]
        assert found in test.read
        assert found == 1 or not curve[found - 2]
        # Nothing that was measured and passed is smaller, so no measurement contradicts it.
        assert found == min(k for k in test.read if curve[k - 1])


@given(curve=st.lists(st.booleans(), min_size=1, max_size=60), width=st.integers(1, 9))
def test_an_exhaustive_search_finds_the_smallest_on_any_curve(curve, width):
    test = Recorder(lambda k: curve[k - 1], n=len(curve))
    expected = curve.index(True) + 1 if any(curve) else None
    assert smallest(test, n=len(curve), width=width, exhaustive=True) == expected
    assert test.read == list(range(1, (expected or len(curve)) + 1))


@given(curve=st.lists(st.booleans(), min_size=1, max_size=60), options=searches)
def test_answers_are_read_no_further_than_the_first_that_passes(curve, options):
    """The caller makes them lazily, and what follows may be expensive."""
    test = Recorder(lambda k: curve[k - 1], n=len(curve))
    smallest(test, n=len(curve), **options)
    read = iter(test.read)
    for asked in test.asked:
        for k in asked:
            assert next(read) == k
            if curve[k - 1]:
                break
    assert next(read, None) is None


@given(n=st.integers(3, 3_000), data=st.data())
def test_a_dent_wider_than_the_probes_is_found(n, data):
    """Probes are spread evenly, so that an early stretch that passes does not hide among them."""
    probes = data.draw(st.integers(1, 15))
    late = data.draw(st.integers(2, n))
    wide = late // (probes + 1) + 1
    start = data.draw(st.integers(1, max(1, late - wide)))
    stretch = range(start, start + wide)
    found = smallest(
        lambda ks: [k in stretch or k >= late for k in ks], n=n, probes=probes, width=1
    )
    assert found == start


def test_a_narrow_dent_can_be_missed_but_not_by_an_exhaustive_search():
    def test(ks):
        return [k == 5 or k >= 100 for k in ks]

    assert smallest(test, n=128, probes=0) == 100
    assert smallest(test, n=128, exhaustive=True) == 5


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 3, "width": 0}, {"n": 3, "probes": -1}])
def test_numbers_out_of_range_are_refused_before_anything_is_tested(options):
    def test(_ks):
        raise AssertionError

    with pytest.raises(ValueError, match="expected n and width of at least 1"):
        smallest(test, **options)

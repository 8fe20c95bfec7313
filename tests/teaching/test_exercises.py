"""Checks accept what is right, name common mistakes, and never give an answer away."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import assert_no_hooks
from vlm_lens import HookedVLM, NeuronSet
from vlm_lens.teaching import Exercises
from vlm_lens.teaching.claims import CLAIMS

NAME = "blocks.3.mlp.hook_post"


@pytest.fixture(scope="module")
def exercises(shapes: HookedVLM) -> Exercises:
    return Exercises(shapes)


@pytest.fixture(scope="module")
def cache(shapes: HookedVLM, exercises: Exercises):
    with torch.no_grad():
        return shapes.run_with_cache(exercises.inputs, names_filter=["*.hook_pattern", NAME])[1]


def said(exercises: Exercises, number: int, answer: Any) -> str:
    verdict = exercises.check(number, answer)
    assert exercises.is_right(number) == (verdict.state == "right")
    return f"{verdict.state}. {verdict.message}"


@pytest.mark.parametrize("number", range(1, 9))
def test_three_dots_are_no_answer(exercises: Exercises, number: int):
    assert said(exercises, number, ...).startswith("open.")


@pytest.mark.sampled
@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("answer", [None, "nonsense", 3.5, [], {}, object(), torch.zeros(2)])
def test_nonsense_is_refused_with_a_reason(exercises: Exercises, number: int, answer: Any):
    assert exercises.check(number, answer).state == "not yet"
    assert exercises.check(number, answer).message


def test_an_exercise_that_is_not_there(exercises: Exercises):
    with pytest.raises(KeyError, match="they are 1 to 8"):
        exercises.check(9, 1)


def test_the_position_of_a_pixel(exercises: Exercises):
    right = exercises.token_map.position(52, 30)
    assert right is not None
    assert said(exercises, 1, right).startswith("right")
    assert "in front of the picture" in said(exercises, 1, right - 1)
    assert "exchanged" in said(exercises, 1, exercises.token_map.position(30, 52))
    assert "no patch at all" in said(exercises, 1, 0)
    assert "x from 0 to 8 and y from 0 to 8" in said(exercises, 1, 1)


def test_the_share_of_attention(exercises: Exercises, cache):
    pattern, places = cache["pattern", 2][0], exercises.token_map.positions("image")
    right = pattern[3, -1, places].sum()
    assert said(exercises, 2, right).startswith("right")
    assert said(exercises, 2, float(right)).startswith("right")
    for wrong, complaint in [
        (100 * right, "percent"),
        (pattern[3, -1, places].mean(), "mean of a patch"),
        (pattern[:, -1, places].sum(-1).mean(), "all heads"),
        (pattern[3][:, places].sum(-1).mean(), "all queries"),
        (0.123, "another number"),
        (-2, "between 0 and 1"),
        (pattern, "one number"),
    ]:
        message = said(exercises, 2, wrong)
        assert complaint in message
        assert f"{float(right):.2f}" not in message


def test_the_hook_that_averages(exercises: Exercises):
    mean = lambda t, hook: t.mean(1, keepdim=True).expand_as(t)  # noqa: E731
    assert said(exercises, 3, mean).startswith("right")
    for wrong, complaint in [
        (lambda t, hook: None, "open. The function returns nothing"),
        (lambda t, hook: t, "returned what it got"),
        (lambda t, hook: t.mean(1), "the shape must stay"),
        (lambda t, hook: t.mean(0, keepdim=True).expand_as(t), "pictures of a batch"),
        (lambda t, hook: t.mean(2, keepdim=True).expand_as(t), "channels of a patch"),
        (lambda t, hook: torch.full_like(t, float(t.mean())), "channels included"),
        (lambda t, hook: t * 0, "values are others"),
        (lambda t, hook: 1 / 0, "ZeroDivisionError"),
        (lambda t: t, "TypeError"),
        (lambda t, hook: 3, "returned a int"),
    ]:
        assert complaint in said(exercises, 3, wrong)


def test_neurons_for_the_picture(exercises: Exercises, cache):
    scores = cache.image(NAME).mean(0) - cache.text(NAME).mean(0)
    right = NeuronSet.from_scores({NAME: scores}, k=10)
    assert said(exercises, 4, right).startswith("right")
    other = NeuronSet.from_scores({"blocks.2.mlp.hook_post": scores}, k=10)
    for wrong, complaint in [
        (NeuronSet(list(right)[::-1]), "another order"),
        (NeuronSet.from_scores({NAME: -scores}, k=10), "wrong way round"),
        (right[:5], "Expected 10 neurons"),
        (other, "only, got blocks.2.mlp.hook_post"),
        (list(right), "a list"),
        (right[:9] | NeuronSet.from_scores({NAME: -scores}, k=1), "9 of your 10"),
    ]:
        message = said(exercises, 4, wrong)
        assert complaint in message
        assert str(right[0].index) not in message.replace("10", "")


def test_the_share_of_controls(exercises: Exercises):
    def counted(harm, neurons, sizes, n):
        return [harm(neurons.sample_control(sizes, seed=i)) >= harm(neurons) for i in range(n)]

    assert said(exercises, 5, lambda *args: sum(counted(*args)) / args[-1]).startswith("right")
    for wrong, complaint in [
        (lambda *args: sum(counted(*args)), "how many controls"),
        (lambda *args: 1 - sum(counted(*args)) / args[-1], "at least"),
        (lambda *args: (1 + sum(counted(*args))) / (1 + args[-1]), "No control does"),
        (lambda h, ns, s, n: float(h(ns.sample_control(s)) >= h(ns)), "seeds 0 to n - 1"),
        (lambda *args: [1], "expected one number"),
        (lambda *args: None, "open."),
        (lambda: 1, "TypeError"),
    ]:
        assert complaint in said(exercises, 5, wrong)


def test_neighbours(exercises: Exercises):
    def right(tokens, positions, distance):
        near = [tokens.cell(p) for p in positions]
        return [
            p
            for p in tokens.positions("image")
            if any(
                max(abs(a - b) for a, b in zip(tokens.cell(p), n, strict=True)) <= distance
                for n in near
            )
        ]

    def by_number(tokens, positions, distance):
        steps = range(-distance, distance + 1)
        found = {p + 8 * row + col for p in positions for row in steps for col in steps}
        return found & set(tokens.positions("image"))

    def cross(tokens, positions, distance):
        near = [tokens.cell(p) for p in positions]
        return {
            p
            for p in tokens.positions("image")
            if any(
                sum(abs(a - b) for a, b in zip(tokens.cell(p), n, strict=True)) <= distance
                for n in near
            )
        }

    assert said(exercises, 6, right).startswith("right")
    assert "At the right border" in said(exercises, 6, by_number)
    assert "eight neighbours" in said(exercises, 6, cross)
    assert "show no patch: [0]" in said(exercises, 6, lambda *a: {0})
    assert "expected positions" in said(exercises, 6, lambda *a: 5)


def test_the_head_that_moves_the_shape(exercises: Exercises, shapes: HookedVLM):
    assert "Expected (layer, head)" in said(exercises, 7, 4)
    assert "6 layers of 4 heads" in said(exercises, 7, (6, 0))
    message = said(exercises, 7, (5, 3))
    assert "another one differs more" in message
    assert said(exercises, 7, (4, 2)).startswith("right")
    assert_no_hooks(shapes)


def test_the_claims(exercises: Exercises):
    assert said(exercises, 8, {"b", "f"}).startswith("right")
    assert said(exercises, 8, "bf").startswith("right")
    assert "1 more" in said(exercises, 8, ["b"])
    assert "no claim 'z'" in said(exercises, 8, ["z"])
    for letter in set(CLAIMS) - {"b", "f"}:
        assert f"Not {letter}: " in said(exercises, 8, {"b", letter})


def test_the_count_of_right_answers(shapes: HookedVLM):
    fresh = Exercises(shapes)
    assert repr(fresh) == "Exercises(0 of 8 right)"
    fresh.check(8, {"b", "f"})
    assert fresh.n_right == 1
    fresh.check(8, {"a"})
    assert fresh.n_right == 0

"""Neurons of groups: formulas against loops, scores against the slow way, effects, and chance."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.statistics.slow import built, samples_of
from vlm_lens import HookedVLM, Sample, load_samples
from vlm_lens.analyses import culture
from vlm_lens.experiments import Matrix, matrix
from vlm_lens.passes import Run
from vlm_lens.results.scores import Scores

NAME = "blocks.0.mlp.hook_act"
GROUPS = ("a", "b", "c")


# Formulas -----------------------------------------------------------------------------------------


def slow(selector: str, table: list[list[float]]) -> list[list[float]]:
    """Neuron by neuron and group by group, in Python's own numbers."""
    n, d = len(table), len(table[0])
    bar = sorted(value for row in table for value in row)
    place = 0.95 * (len(bar) - 1)
    low, share = int(place), place - int(place)
    limit = bar[low] + share * (bar[min(low + 1, len(bar) - 1)] - bar[low])
    found = [[0.0] * d for _ in range(n)]
    for j in range(d):
        column = [table[c][j] for c in range(n)]
        for c in range(n):
            others = [column[e] for e in range(n) if e != c]
            if selector == "MAD":
                found[c][j] = column[c] - sum(others) / len(others)
            elif selector == "ConAct":
                is_best = column.index(max(column)) == c
                found[c][j] = column[c] - max(others) if is_best else 0.0
            elif selector == "LAP":
                found[c][j] = column[c]
            else:
                total = sum(column)
                parts = [p / total for p in column if p]
                entropy = -sum(p * math.log(p) for p in parts)
                found[c][j] = -entropy if column[c] > limit else math.nan
    return found


@pytest.mark.parametrize("selector", ["LAP", "LAPE", "MAD", "ConAct"])
def test_selectors_are_what_the_loops_say(selector: Any) -> None:
    rates = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    rates[0, :5] = 0.0
    means = Scores({NAME: rates}, selector, axes={"group": GROUPS})
    expected = torch.tensor(slow(selector, rates.tolist()))
    found = culture.compared(means)[NAME]
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


def planted() -> Tensor:
    """Neuron 3 is a's and neuron 7 c's; all others are alike in all groups."""
    rates = torch.full((3, 10), 0.4)
    rates[0, 3], rates[1:, 3] = 0.9, 0.0
    rates[2, 7], rates[:2, 7] = 0.8, 0.0
    return rates


@pytest.mark.parametrize("selector", ["LAPE", "MAD", "ConAct"])
def test_planted_neurons_are_found(selector: Any) -> None:
    means = Scores({NAME: planted()}, selector, axes={"group": GROUPS})
    sets = culture.select(culture.compared(means), share=0.2 if selector == "LAPE" else 0.1)
    best = {group: [n.index for n in neurons][:1] for group, neurons in sets.items()}
    assert best["a"] == [3]
    if selector != "LAPE":  # 0.8 is below its bar
        assert best["c"] == [7]


def test_ties_go_to_the_lower_index_and_group() -> None:
    rates = torch.full((3, 4), 0.5)
    means = Scores({NAME: rates}, "ConAct", axes={"group": GROUPS})
    assert not culture.compared(means)[NAME].any()  # no margin
    sets = culture.select(replace(means, method="LAP"), share=0.5)
    assert [n.index for n in sets["b"]] == [0, 1]


# Scores -------------------------------------------------------------------------------------------


def grouped() -> list[Sample]:
    pairs = zip(samples_of("llava"), ["x", "y", "x", "y", "x"], strict=True)
    return [replace(sample, category=group) for sample, group in pairs]


@pytest.mark.parametrize("selector", ["LAP", "MAD"])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_scores_are_what_the_slow_way_gives(selector: Any, batch_size: int) -> None:
    model, samples = built("llava"), grouped()
    values: dict[str, list[Tensor]] = defaultdict(list)
    for sample in samples:
        inputs = model.prepare(text=sample.text, images=sample.images or None)
        _, cache = model.run_with_cache(inputs, names_filter=NAME)
        values[str(sample.category)].append(cache[NAME][0, inputs.token_map[0].positions("text")])
    rows = [torch.cat(values[group]) for group in ("x", "y")]
    if selector == "MAD":
        one, two = (row.mean(0) for row in rows)
        expected = torch.stack([one - two, two - one])
    else:
        expected = torch.stack([(row > 0).double().mean(0) for row in rows])
    options: dict[str, Any] = {"only_right": False, "run": Run(batch_size=batch_size)}
    scores = culture.score(model, samples, selector=selector, **options)
    torch.testing.assert_close(scores[NAME].double(), expected, rtol=1e-5, atol=1e-6)
    assert scores.axes == {"group": ("x", "y")}
    assert scores.parameters["n_samples"] == {"x": 3, "y": 2}
    assert scores.notes == ()


def test_only_questions_that_are_answered_right_count() -> None:
    model = HookedVLM.from_pretrained("shapes-llava")
    samples = load_samples("shapes-llava", n=12)
    wrong = [replace(sample, answer="never") for sample in samples[:4]]
    scores = culture.score(model, [*wrong, *samples])
    assert sum(scores.parameters["n_samples"].values()) == 12
    with pytest.raises(ValueError, match="at least two groups that are answered right, got"):
        culture.score(model, wrong)


def test_an_interrupted_run_goes_on_to_the_same_scores(tmp_path: Path) -> None:
    model, samples = built("llava"), grouped()

    def stop(done: int, total: int | None) -> None:  # noqa: ARG001
        if done == 2:
            raise KeyboardInterrupt

    options: dict[str, Any] = {"only_right": False}
    run = Run(folder=tmp_path, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        culture.score(model, samples, run=replace(run, on_batch=stop), **options)
    resumed = culture.score(model, samples, run=run, **options)
    expected = culture.score(model, samples, **options)
    assert torch.equal(resumed.stacked(), expected.stacked())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selector": "best"}, "expected a selector of"),
        ({"by": lambda sample: "all"}, "at least two groups, got"),  # noqa: ARG005
        ({"samples": samples_of("llava")}, "has no category to be grouped by"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_compared_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"samples": grouped(), "only_right": False, **change}
    with pytest.raises(ValueError, match=message):
        culture.score(built("llava"), given.pop("samples"), **given)


@pytest.mark.parametrize("share", [0, -0.1, 1.5, 1e-6])
def test_shares_that_select_nothing_are_refused(share: float) -> None:
    scores = Scores({NAME: torch.rand(3, 10)}, "MAD", axes={"group": GROUPS})
    with pytest.raises(ValueError, match="expected a share above 0 and at most 1"):
        culture.select(scores, share=share)


# Effects ------------------------------------------------------------------------------------------


def effects(samples: list[Sample]) -> Matrix:
    """What MAD's 1% of each category's neurons do to questions that were not looked at."""
    model = HookedVLM.from_pretrained("shapes-llava")
    scores = culture.score(model, samples, selector="MAD")
    tasks: dict[str, list[Sample]] = defaultdict(list)
    for sample in load_samples("shapes-llava", n=140, seed=5, split="val"):
        tasks[str(sample.category)].append(sample)
    sets = {group: s for group, s in culture.select(scores, share=0.01).items() if group == "shape"}
    return matrix(model, sets, tasks, seeds=[0, 1])


@pytest.mark.full
def test_neurons_of_shapes_are_needed_for_shapes_alone() -> None:
    samples = load_samples("shapes-llava", n=210)
    [row] = effects(samples).own_and_cross().to_dict("records")
    assert row["own"] > 0.5
    assert abs(row["cross"]) < 0.05
    assert abs(row["random gap"]) < 0.1
    # With categories dealt out at random, the neurons of "shape" are needed for nothing.
    categories = [sample.category for sample in samples]
    Random(0).shuffle(categories)
    dealt = [replace(s, category=c) for s, c in zip(samples, categories, strict=True)]
    [row] = effects(dealt).own_and_cross().to_dict("records")
    assert abs(row["gap"]) < 0.1

"""One pass gives what the slow way does, in whatever batches, through whatever stops it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import assert_no_hooks
from tests.statistics.slow import built, samples_of
from tests.tiny import build_tiny
from vlm_lens import HookedVLM, Sample
from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.passes import (
    Answers,
    Beside,
    Passed,
    Reading,
    Reducer,
    Rows,
    Run,
    SamplesLeftOutWarning,
    State,
    Total,
    mean_of,
    merge,
    one_pass,
    sum_of,
)

SITES = ["blocks.0.mlp.hook_act", "blocks.2.hook_resid_post"]
REDUCERS = {"total": Total(sum_of, over="image"), "rows": Rows(mean_of, over="text")}
FAMILIES = ["llava", "llava_next", "qwen2_5_vl"]


def slow(model: HookedVLM, samples: list[Sample]) -> dict[str, dict[str, Tensor]]:
    """Sample by sample, alone: sums over images, and the means of texts."""
    found: dict[str, dict[str, Tensor]] = {}
    for site in SITES:
        sums, rows, numbers = [], [], []
        for number, sample in enumerate(samples):
            inputs = model.prepare(text=sample.text, images=sample.images or None)
            _, cache = model.run_with_cache(inputs, names_filter=site)
            of = {k: inputs.token_map[0].positions(k) for k in ("image", "text")}
            if of["image"]:
                sums.append(cache[site][0, of["image"]].sum(0))
            if of["text"]:
                rows.append(cache[site][0, of["text"]].mean(0))
                numbers.append(number)
        total = torch.stack(sums).sum(0)
        found[site] = {"sum": total, "rows": torch.stack(rows), "numbers": torch.tensor(numbers)}
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 16])
@pytest.mark.parametrize("name", FAMILIES)
def test_is_what_the_slow_way_gives(name: str, batch_size: int) -> None:
    model, samples = built(name), samples_of(name)
    passed = one_pass(model, samples, REDUCERS, sites=SITES, run=Run(batch_size=batch_size))
    for site, expected in slow(model, samples).items():
        total, rows = (passed.states["data", reducer, site] for reducer in REDUCERS)
        torch.testing.assert_close(total["sum"], expected["sum"])
        torch.testing.assert_close(rows["rows"], expected["rows"])
        assert rows["numbers"].tolist() == expected["numbers"].tolist()
    assert passed.n_samples == {"data": len(samples)}
    assert_no_hooks(model)


def assert_same(one: Passed, other: Passed) -> None:
    """Bit for bit."""
    for name in ("n_samples", "left_out", "not_finite"):
        assert getattr(one, name) == getattr(other, name)
    assert one.states.keys() == other.states.keys()
    for key, state in one.states.items():
        assert state.keys() == other.states[key].keys()
        for name, tensor in state.items():
            assert torch.equal(tensor, other.states[key][name]), (key, name)


# Groups, data sets, shards ------------------------------------------------------------------------


def test_groups_are_added_up_apart() -> None:
    model, samples = built("llava"), samples_of("llava")
    by: Any = lambda sample: str(len(sample.images))  # noqa: E731
    passed = one_pass(model, samples, REDUCERS, sites=SITES, by=by, run=Run(batch_size=2))
    assert passed.n_samples == {"1": 3, "2": 1, "0": 1}
    two = one_pass(model, [s for s in samples if len(s.images) == 2], REDUCERS, sites=SITES)
    for site, state in passed.of("total", "2").items():
        torch.testing.assert_close(state["sum"], two.states["data", "total", site]["sum"])
    assert passed.of("rows", "1")[SITES[0]]["numbers"].tolist() == [0, 3, 4]
    assert not passed.of("total", "0")  # which has no image


def test_data_sets_have_names_and_numbers_of_their_own() -> None:
    model, samples = built("llava"), samples_of("llava")
    passed = one_pass(model, {"a": samples[:2], "b": samples[2:]}, REDUCERS, sites=SITES, first=7)
    assert passed.n_samples == {"a": 2, "b": 3}
    assert passed.of("rows", "b")[SITES[0]]["numbers"].tolist() == [7, 8, 9]


def test_only_some_are_looked_at() -> None:
    model, samples = built("llava"), samples_of("llava")
    passed = one_pass(model, samples, REDUCERS, sites=SITES, only={1, 4})
    assert passed.of("rows", "data")[SITES[0]]["numbers"].tolist() == [1, 4]


@pytest.mark.parametrize("n", [2, 3])
def test_shards_merge_to_the_whole(n: int) -> None:
    model, samples = built("llava"), samples_of("llava")
    whole = one_pass(model, samples, REDUCERS, sites=SITES, run=Run(batch_size=1))
    parts = [
        one_pass(model, samples, REDUCERS, sites=SITES, run=Run(batch_size=1, shard=(i, n)))
        for i in range(n)
    ]
    merged = merge(parts, REDUCERS)
    assert merged.n_samples == whole.n_samples
    for key, state in whole.states.items():
        for name, tensor in state.items():
            torch.testing.assert_close(merged.states[key][name], tensor)


def test_prepared_inputs_are_data_too() -> None:
    model, samples = built("llava"), samples_of("llava")
    inputs = model.prepare(
        text=[sample.text for sample in samples], images=[sample.images for sample in samples]
    )
    expected = one_pass(model, samples, REDUCERS, sites=SITES)
    assert_same(one_pass(model, inputs, REDUCERS, sites=SITES), expected)


def test_answers_are_positions_too() -> None:
    model, samples = built("llava"), samples_of("llava")
    behind = {"answer": Total(sum_of, over="answer")}
    given = one_pass(model, samples, behind, sites=SITES, answers=Answers("given"))
    assert given.of("answer", "data")[SITES[0]]["positions"] == 9  # words of all answers
    with pytest.raises(KeyError):
        one_pass(model, samples, behind, sites=SITES).states["data", "answer", SITES[0]]


# What reducers see --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gradients(Reducer):
    """Adds up gradient times activation over everything."""

    @property
    def gradient(self) -> bool:
        return True

    def __call__(self, reading: Reading) -> State:
        assert reading.gradient is not None
        return {"sum": (reading.gradient * reading.activation).sum((0, 1)).double()}


def test_gradients_are_those_of_each_samples_own_loss() -> None:
    model, samples = built("llava"), samples_of("llava")
    site = "blocks.1.hook_resid_post"
    together, alone = (
        one_pass(
            model,
            samples,
            {"g": Gradients()},
            sites=[site],
            target="answer",
            run=Run(batch_size=size),
        )
        for size in (5, 1)
    )
    state = together.states["data", "g", site]["sum"]
    torch.testing.assert_close(state, alone.states["data", "g", site]["sum"])
    assert state.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.hf_model.parameters())
    with pytest.raises(ValueError, match="so something has to be scored: pass target='own'"):
        one_pass(model, samples, {"g": Gradients()}, sites=[site])


@dataclass(frozen=True)
class Norms(Reducer):
    """The norm of the queries beside, and of what is not there."""

    beside: tuple[Beside, ...] = (
        Beside("queries", ("attn.hook_rot_q", "attn.hook_q")),
        Beside("sums", ("attn.hook_pattern",), lambda tensor, *_: tensor.sum()),
        Beside("nothing", ("attn.hook_nothing",)),
    )

    def __call__(self, reading: Reading) -> State:
        assert "nothing" not in reading.beside
        queries = reading.beside["queries"]
        return {"q": queries.norm().double(), "sums": reading.beside["sums"].double()}


def test_what_is_beside_comes_with_it() -> None:
    model, samples = built("llava"), samples_of("llava")[:1]
    names = [f"blocks.1.{end}" for end in ("mlp.hook_act", "mlp.hook_post")]
    passed = one_pass(model, samples, {"norms": Norms()}, sites=names)
    inputs = model.prepare(text=samples[0].text, images=samples[0].images)
    _, cache = model.run_with_cache(inputs)
    for name in names:
        state = passed.states["data", "norms", name]
        torch.testing.assert_close(state["q"], cache["blocks.1.attn.hook_rot_q"].norm())
        torch.testing.assert_close(state["sums"], cache["pattern", 1].sum())


def test_hooks_that_change_the_model_act_while_it_runs() -> None:
    model, samples = built("llava"), samples_of("llava")[:2]
    zero: Any = lambda batch: [("blocks.0.hook_mlp_out", lambda tensor, hook: tensor * 0)]  # noqa: E731, ARG005
    passed = one_pass(
        model, samples, {"x": Total(sum_of)}, sites=["blocks.0.hook_mlp_out"], under=zero
    )
    assert passed.states["data", "x", "blocks.0.hook_mlp_out"]["sum"].abs().max() == 0
    assert_no_hooks(model)


# What does not count ------------------------------------------------------------------------------


def test_a_bad_sample_is_left_out_and_the_others_of_its_batch_count() -> None:
    tiny = build_tiny("clip-llama", dtype=torch.float64)
    model, samples = tiny.model, samples_of("llava")
    word = tiny.processor.tokenizer.convert_tokens_to_ids("green")
    tiny.hf.model.language_model.embed_tokens.weight.data[word] = torch.inf
    spoilt = replace(samples[1], text="green ?")
    data = [samples[0], spoilt, samples[2], Sample(images=[], text="")]
    with pytest.warns(SamplesLeftOutWarning, match=r"2 of 4 samples do not count; sample 1: block"):
        passed = one_pass(model, data, REDUCERS, sites=SITES)
    assert passed.n_samples == {"data": 2}
    assert passed.not_finite == {SITES[0]: 1, SITES[1]: 1}
    assert list(passed.left_out["data"]) == [1, 3]
    good = one_pass(model, [samples[0], samples[2]], REDUCERS, sites=SITES)
    for key, state in good.states.items():
        if "sum" in state:
            torch.testing.assert_close(passed.states[key]["sum"], state["sum"])


def test_where_none_counts_it_is_refused_and_soon() -> None:
    seen: list[int] = []

    def bad() -> Iterator[Sample]:
        for number in range(99):
            seen.append(number)
            yield Sample(images=[], text="")

    with pytest.raises(ValueError, match="none of the first 8 samples can be used; sample 0: "):
        one_pass(built("llava"), bad(), REDUCERS, sites=SITES, run=Run(batch_size=2))
    assert len(seen) == 8
    with pytest.raises(ValueError, match="none of the first 1 samples can be used"):
        one_pass(built("llava"), [Sample(images=[], text="")], REDUCERS, sites=SITES)


def test_hook_points_that_nothing_reaches_are_told() -> None:
    texts = [Sample(images=[], text="what ?")]
    with pytest.warns(HookNeverFiredWarning, match="1 hook points have nothing to show"):
        one_pass(
            built("llava"),
            texts,
            {"x": Total(sum_of)},
            sites=["blocks.0.mlp.hook_act", "projector.hook_out"],
        )


@pytest.mark.parametrize("data", [[], {}, {"a": []}, iter([])])
def test_no_samples_are_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="at least one"):
        one_pass(built("llava"), data, REDUCERS, sites=SITES)


@pytest.mark.parametrize("data", [["text"], Sample(images=[], text="x"), [1]])
def test_what_is_no_sample_is_refused(data: Any, unchecked: None) -> None:
    with pytest.raises(TypeError, match="expected s"):
        one_pass(built("llava"), data, REDUCERS, sites=SITES)


# Stops --------------------------------------------------------------------------------------------


def stopping(after: int) -> Any:
    def tell(done: int, total: int | None) -> None:  # noqa: ARG001
        if done == after:
            raise KeyboardInterrupt

    return tell


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("after", [1, 3, 4])
def test_goes_on_to_the_identical_states(tmp_path: Path, after: int, every: int) -> None:
    model, samples = built("llava"), samples_of("llava")
    run = Run(batch_size=1, folder=tmp_path, every=every)
    with pytest.raises(KeyboardInterrupt):
        one_pass(model, samples, REDUCERS, sites=SITES, run=replace(run, on_batch=stopping(after)))
    assert_no_hooks(model)
    seen: list[int] = []
    tell = replace(run, on_batch=lambda done, total: seen.append(done))  # noqa: ARG005
    resumed = one_pass(model, iter(samples), REDUCERS, sites=SITES, run=tell)
    assert seen == list(range(after + 1, 6))
    expected = one_pass(model, samples, REDUCERS, sites=SITES, run=Run(batch_size=1))
    assert_same(resumed, expected)


def test_remembers_what_does_not_count(tmp_path: Path) -> None:
    model, samples = built("llava"), samples_of("llava")
    data = [samples[0], Sample(images=[], text=""), *samples[1:]]
    run = Run(batch_size=2, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        one_pass(model, data, REDUCERS, sites=SITES, run=replace(run, on_batch=stopping(1)))
    with pytest.warns(SamplesLeftOutWarning, match="1 of 6"):
        resumed = one_pass(model, data, REDUCERS, sites=SITES, run=run)
    assert list(resumed.left_out["data"]) == [1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"run": {"batch_size": 2}}, "batch_size is 1, but now it is 2"),
        ({"run": {"shard": (0, 2)}}, "shard is"),
        ({"sites": ["blocks.0.mlp.hook_act"]}, "sites is"),
        ({"answers": Answers("given")}, "answers is"),
        ({"reducers": {"total": Total(mean_of, over="image")}}, "reducers is"),
        ({"about": {"alpha": 0.5}}, "alpha is None, but now it is 0.5"),
    ],
)
def test_what_belongs_to_something_else_is_refused(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    model, samples = built("llava"), samples_of("llava")
    given: dict[str, Any] = {"reducers": REDUCERS, "sites": SITES}
    run = Run(batch_size=1, folder=tmp_path)
    one_pass(model, samples[:2], run=run, **given)
    run = replace(run, **change.pop("run", {}))
    with pytest.raises(ValueError, match=f"belongs to another run: its {named}"):
        one_pass(model, samples[:2], run=run, **{**given, **change})


def test_other_samples_and_other_weights_are_refused(tmp_path: Path) -> None:
    tiny, samples = build_tiny("clip-llama"), samples_of("llava")
    run = Run(batch_size=1, folder=tmp_path)
    one_pass(tiny.model, samples[:2], REDUCERS, sites=SITES, run=run)
    with pytest.raises(ValueError, match="belongs to other samples"):
        one_pass(tiny.model, samples[1:], REDUCERS, sites=SITES, run=run)
    tiny.hf.lm_head.weight.data += 0.01
    with pytest.raises(ValueError, match="its model is"):
        one_pass(tiny.model, samples[:2], REDUCERS, sites=SITES, run=run)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"every": 0}, {"shard": (2, 2)}])
def test_runs_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Run(**options)

"""What a pass hangs on hook points, a student can hang there too."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tests.conftest import assert_no_hooks
from tests.statistics.slow import built, samples_of
from vlm_lens.analyses.miner import Importances
from vlm_lens.inputs.token_types import MODALITIES, TokenType
from vlm_lens.passes import (
    Beside,
    Reading,
    Reducer,
    State,
    Total,
    Watch,
    mean_of,
    one_pass,
)
from vlm_lens.statistics.reducers import MomentsByType, TopOf

NAME = "blocks.1.mlp.hook_act"
TYPES = tuple(TokenType.parse(name) for name in MODALITIES)
REDUCERS = {
    "mean": Total(mean_of, over="image"),
    "moments": MomentsByType.of(TYPES, active_above=0.0, attention=True),
    "top": TopOf(3, TokenType.union(TYPES)),
    "miner": Importances.of("special_text_separate", rotated=True),
}


def test_the_same_object_is_a_hook_function() -> None:
    model, [sample, *_] = built("llava"), samples_of("llava")
    inputs = model.prepare(images=sample.images, text=sample.text)
    watch = Watch(model, inputs, REDUCERS)
    model.run_with_hooks(inputs, fwd_hooks=watch.hooks([NAME]))
    passed = one_pass(model, [sample], REDUCERS, sites=[NAME])
    for reducer in REDUCERS:
        state, expected = watch.states[reducer, NAME], passed.states["data", reducer, NAME]
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor)
    assert_no_hooks(model)


def test_it_can_hang_on_a_point_by_itself() -> None:
    model, [sample, *_] = built("llava"), samples_of("llava")
    inputs = model.prepare(images=sample.images, text=sample.text)
    watch = Watch(model, inputs, {"mean": REDUCERS["mean"]})
    logits = model.run_with_hooks(inputs, fwd_hooks=[(NAME, watch)])
    _, cache = model.run_with_cache(inputs)
    shown = inputs.token_map[0].positions("image")
    torch.testing.assert_close(watch.states["mean", NAME]["sum"], cache[NAME][0, shown].mean(0))
    assert torch.equal(logits, model(inputs))  # reading changes nothing


def test_one_watch_is_for_one_run() -> None:
    model, [sample, *_] = built("llava"), samples_of("llava")
    inputs = model.prepare(images=sample.images, text=sample.text)
    hooks = [(NAME, Watch(model, inputs, {"mean": REDUCERS["mean"]}))]
    model.run_with_hooks(inputs, fwd_hooks=hooks)
    with pytest.raises(ValueError, match="came by twice: a Watch is for one run"):
        model.run_with_hooks(inputs, fwd_hooks=hooks)
    assert_no_hooks(model)


@dataclass(frozen=True)
class Behind(Reducer):
    beside: tuple[Beside, ...] = (Beside("out", ("hook_resid_post",)),)

    def __call__(self, reading: Reading) -> State:
        return {"out": reading.beside["out"]}


def test_what_comes_later_cannot_be_read_beside() -> None:
    model, samples = built("llava"), samples_of("llava")[:1]
    with pytest.raises(KeyError, match="out"):
        one_pass(model, samples, {"x": Behind()}, sites=[NAME])


@dataclass(frozen=True)
class Asking(Behind):
    def __call__(self, reading: Reading) -> State:
        return {"n": torch.tensor(len(reading.beside))}


def test_that_it_comes_later_is_said() -> None:
    model, samples = built("llava"), samples_of("llava")[:1]
    with pytest.raises(ValueError, match="comes by after 'blocks.1.mlp.hook_act'"):
        one_pass(model, samples, {"x": Asking()}, sites=[NAME])
    assert_no_hooks(model)

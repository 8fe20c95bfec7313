"""An interrupted pass goes on to the identical result; what does not belong to it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import assert_no_hooks
from tests.statistics.same import assert_identical
from tests.statistics.slow import built, samples_of
from tests.tiny import build_tiny
from vlm_lens.data import Sample
from vlm_lens.statistics import NeuronStatistics, collect

SAMPLES = samples_of("llava") * 2
OPTIONS: dict[str, Any] = {
    "sites": "blocks.*.mlp.hook_act",
    "answers": "own",
    "max_new_tokens": 3,
    "batch_size": 2,
    "top_k": 3,
}


class Stop:
    """Interrupts after a number of batches."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.seen: list[tuple[int, int | None]] = []

    def __call__(self, done: int, total: int | None) -> None:
        self.seen.append((done, total))
        if done == self.after:
            raise KeyboardInterrupt


def run(folder: Path | None = None, samples: Any = SAMPLES, **options: Any) -> NeuronStatistics:
    return collect(built("llava"), samples, checkpoint=folder, **{**OPTIONS, **options})


@pytest.mark.sampled
@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_resumes_to_the_identical_result(tmp_path: Path, after: int, every: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, on_batch=Stop(after), checkpoint_every=every)
    assert_no_hooks(built("llava"))
    seen = Stop(-1)
    resumed = run(tmp_path, on_batch=seen, checkpoint_every=every)
    # The batch whose callback was interrupted had been counted already.
    assert seen.seen == [(n, 5) for n in range(after + 1, 6)]
    assert_identical(resumed, run())
    assert_identical(run(tmp_path), resumed)  # nothing left to do


def test_interrupted_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    calls = []

    def interrupt(tensor: Any, hook: Any) -> None:
        calls.append(hook.name)
        if len(calls) == 15:  # some way into the third batch's answers
            raise KeyboardInterrupt

    model = built("llava")
    with model.hooks([("blocks.1.hook_mlp_out", interrupt)]), pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    seen = Stop(-1)
    assert_identical(run(tmp_path, on_batch=seen), run())
    assert 1 <= 6 - len(seen.seen) <= 4


def test_an_iterator_has_no_length_and_resumes_too(tmp_path: Path) -> None:
    def one_by_one() -> Iterator[Sample]:
        yield from SAMPLES

    stop = Stop(3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, one_by_one(), on_batch=stop)
    assert stop.seen == [(1, None), (2, None), (3, None)]
    assert_identical(run(tmp_path, one_by_one()), run())


@pytest.mark.full
def test_goes_on_where_samples_were_added(tmp_path: Path) -> None:
    run(tmp_path, SAMPLES[:4])
    assert_identical(run(tmp_path), run())


def test_other_samples_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ValueError, match="belongs to other samples"):
        run(tmp_path, SAMPLES[::-1])
    with pytest.raises(ValueError, match="belongs to other samples"):
        run(tmp_path, SAMPLES[:3])


@pytest.mark.parametrize(
    "options", [{"batch_size": 5}, {"top_k": 4}, {"answers": None}, {"active_above": 0.1}]
)
def test_other_arguments_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    run(tmp_path, SAMPLES[:2])
    with pytest.raises(ValueError, match=f"another run: its {next(iter(options))} is"):
        run(tmp_path, **options)


def test_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path, SAMPLES[:2])
    other = build_tiny("clip-llama").model
    with pytest.raises(ValueError, match="another run: its model is"):
        collect(other, SAMPLES, checkpoint=tmp_path, **OPTIONS)


def test_does_not_touch_the_saved_result(tmp_path: Path) -> None:
    run(tmp_path).save(tmp_path)
    assert_identical(NeuronStatistics.load(tmp_path), run(tmp_path))

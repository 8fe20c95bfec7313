"""CAN's score through interruptions: the same scores, and no checkpoint of anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.analyses.test_can_score import GIVEN, SIZES, built, samples_of
from tests.families.base import picture
from tests.tiny import build_tiny
from vlm_lens.analyses import can
from vlm_lens.data import Sample
from vlm_lens.passes import SamplesLeftOutWarning


def interrupted_at(done: int) -> Any:
    def on_batch(n: int, _total: int) -> None:
        if n == done:
            raise KeyboardInterrupt

    return on_batch


@pytest.mark.sampled
@pytest.mark.parametrize("done", [1, 3, 4])
def test_goes_on_where_it_was_interrupted(tmp_path: Path, done: int) -> None:
    model, samples = built("llava", torch.float32), samples_of("llava")
    options: dict[str, Any] = {**GIVEN, "batch_size": 1}
    expected = can.score(model, samples, **options)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        can.score(model, samples, **options, checkpoint=tmp_path, on_batch=interrupted_at(done))
    calls: list[tuple[int, int]] = []
    resumed = can.score(
        model,
        samples,
        **options,
        checkpoint=tmp_path,
        on_batch=lambda n, total: calls.append((n, total)),
    )
    assert calls == [(n, 5) for n in range(done + 1, 6)]
    assert all(torch.equal(resumed[name], values) for name, values in expected.items())
    again = can.score(model, samples, **options, checkpoint=tmp_path, on_batch=interrupted_at(5))
    assert all(torch.equal(again[name], values) for name, values in expected.items())


def test_interrupted_inside_a_batch_loses_that_batch_only(tmp_path: Path) -> None:
    model, samples = built("llava", torch.float32), samples_of("llava")
    options: dict[str, Any] = {**GIVEN, "batch_size": 2, "checkpoint": tmp_path}
    runs = iter(range(99))

    def interrupt(tensor: Any, hook: Any) -> None:
        if torch.is_grad_enabled() and next(runs) == 1:
            raise KeyboardInterrupt

    hooks = model.hooks([("blocks.2.hook_resid_post", interrupt)])
    with pytest.raises(KeyboardInterrupt), hooks:
        can.score(model, samples, **options)
    calls: list[int] = []
    resumed = can.score(model, samples, **options, on_batch=lambda n, _total: calls.append(n))
    assert calls == [2, 3]
    expected = can.score(model, samples, **GIVEN, batch_size=2)
    assert all(torch.equal(resumed[name], values) for name, values in expected.items())


def test_remembers_samples_that_were_left_out(tmp_path: Path) -> None:
    tiny = build_tiny("clip-llama")
    word = tiny.processor.tokenizer.convert_tokens_to_ids("square")
    tiny.hf.model.language_model.embed_tokens.weight.data[word] = torch.inf
    samples = samples_of("llava")
    options: dict[str, Any] = {**GIVEN, "batch_size": 2, "checkpoint": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        can.score(tiny.model, samples, **options, on_batch=interrupted_at(2))
    with pytest.warns(SamplesLeftOutWarning, match="1 of 5 samples"):
        found = can.score(tiny.model, samples, **options)
    assert found.parameters["left_out"] == [1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"alpha": 1.0}, "alpha is 0.5, but now it is 1.0"),
        ({"tokens": "sum"}, "tokens is 'max', but now it is 'sum'"),
        ({"batch_size": 2}, "batch_size is 1, but now it is 2"),
        ({"sites": "post"}, "sites is"),
    ],
)
def test_refuses_the_checkpoint_of_other_parameters(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    model, samples = built("llava", torch.float32), samples_of("llava")
    options: dict[str, Any] = {**GIVEN, "batch_size": 1, "checkpoint": tmp_path}
    can.score(model, samples[:2], **options)
    with pytest.raises(ValueError, match=f"belongs to another run: its {named}"):
        can.score(model, samples[:2], **{**options, **changes})


def test_refuses_the_checkpoint_of_other_samples_or_another_model(tmp_path: Path) -> None:
    tiny, samples = build_tiny("clip-llama"), samples_of("llava")[:2]
    options: dict[str, Any] = {**GIVEN, "checkpoint": tmp_path}
    can.score(tiny.model, samples, **options)
    shown = Sample(images=[picture(7, size=SIZES[0])], text=samples[0].text, answer="red circle")
    with pytest.raises(ValueError, match="belongs to other samples"):
        can.score(tiny.model, [shown, samples[1]], **options)
    tiny.hf.lm_head.weight.data += 0.01
    with pytest.raises(ValueError, match="its model is .* Name another folder"):
        can.score(tiny.model, samples, **options)


def test_refuses_a_damaged_checkpoint(tmp_path: Path) -> None:
    model, samples = built("llava", torch.float32), samples_of("llava")[:2]
    can.score(model, samples, **GIVEN, checkpoint=tmp_path)
    [tensors] = tmp_path.glob("*.safetensors")
    tensors.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged.*what is half done starts anew"):
        can.score(model, samples, **GIVEN, checkpoint=tmp_path)

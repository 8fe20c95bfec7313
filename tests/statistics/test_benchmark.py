"""The benchmark runs what it says, and its table says what was measured; no time is tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from benchmarks.statistics import (
    CONTENDERS,
    MODELS,
    TARGET,
    Statistics,
    main,
    readme_table,
    table,
)
from tests.statistics.slow import built, samples_of
from vlm_lens.passes.answers import Answers
from vlm_lens.passes.batch import make_batch
from vlm_lens.statistics import collect

STORED = Path(__file__).parents[2] / "benchmarks" / "statistics.json"


def test_measures_what_collect_does() -> None:
    model, samples = built("llava"), samples_of("llava")
    batches = [make_batch(model, samples[i : i + 2], Answers(), numbers=[i, i + 1]) for i in (0, 2)]
    run = Statistics(model, batches, component="language_model", attention=True)
    run()
    expected = collect(model, samples[:4], component="language_model", attention=True, batch_size=2)
    found = replace(expected, sites=run.sites)
    for name, by_type in expected.attention_mean.items():
        for token_type, mean in by_type.items():
            assert found.count[name][token_type] == expected.count[name][token_type]
            assert (found.attention_mean[name][token_type] == mean).all()
        assert (found.top[name].samples == expected.top[name].samples).all()


@pytest.mark.full
def test_writes_and_prints_what_it_measured(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.statistics.keep_heap", lambda: None)  # cannot be taken back
    monkeypatch.setattr("benchmarks.statistics.transformers_logging", MagicMock())
    out = tmp_path / "statistics.json"
    arguments = ["--rounds", "2", "--batches", "1", "--batch-size", "2", "--out", str(out)]
    main(["--model", "shapes-llava", *arguments])
    results = json.loads(out.read_text())
    assert list(results["models"]) == ["shapes-llava"]
    model = results["models"]["shapes-llava"]
    assert model["batches"][0][0] == 2
    assert model["contenders"]["bare forward"]["ratio"] == 1
    assert capsys.readouterr().out.strip() == table(results)
    assert table(results).count("| shapes-llava |") == len(model["contenders"])
    head, rule, row = (line.count("|") for line in readme_table(results).splitlines()[:3])
    assert head == rule == row


def test_the_large_model_takes_samples_of_mixed_lengths() -> None:
    model, samples = MODELS["39m"](8)
    batch = make_batch(model, samples, Answers())
    assert len({int(row.sum()) for row in batch.real}) > 2
    assert sum(not sample.images for sample in samples) == 1


def test_the_larger_model_is_measured_within_the_target() -> None:
    """Of what is stored: one pass over the language model's neurons, top samples included."""
    stored = json.loads(STORED.read_text())
    assert list(stored["models"]) == list(MODELS)
    assert stored["threads"] == 1
    for model in stored["models"].values():
        assert set(CONTENDERS) < set(model["contenders"])
    assert stored["models"]["39m"]["contenders"]["language model, top 50"]["ratio"] <= TARGET


def test_unknown_models_are_refused(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "70b"])
    assert "invalid choice" in capsys.readouterr().err

"""What every study has to do, without a line of test code of its own.

A study that is declared is here by that. Where its defaults want more samples than a test has, its
line in `tests.studies.standard.SMALL` says what to give it instead.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import assert_no_hooks
from tests.statistics.test_bad_data import cut_off
from tests.studies.standard import (
    ATTACK,
    EVERY,
    SMALL,
    STUDIES,
    Trial,
    another,
    assert_close,
    fresh,
    one_line,
    page_of,
    refusal,
    words_of,
)
from vlm_lens import HookedVLM, Sample
from vlm_lens.results import Result
from vlm_lens.studies.options import Study

pytestmark = EVERY


# What it finds ------------------------------------------------------------------------------------


def test_batches_make_no_difference(trial: Trial) -> None:
    together, alone = (trial.found(batch_size=n).packed() for n in (16, 1))
    assert_close(together, alone)


def test_it_is_the_same_once_it_is_saved_and_loaded(trial: Trial, tmp_path: Path) -> None:
    found = trial.found()
    found.save(tmp_path / "found")
    loaded = type(found).load(tmp_path / "found")
    assert_close(loaded.packed(), found.packed())
    assert loaded.headline() == found.headline()
    assert [s.title for s in loaded.sections()] == [s.title for s in found.sections()]


def test_its_command_writes_what_the_function_finds(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trial() == 0
    said, expected = capsys.readouterr().out.splitlines(), trial.found(batch_size=trial.batch_size)
    assert_close(type(expected).load(trial.out).packed(), expected.packed())
    assert said[0] == f"{expected.headline().rstrip('.')}."
    assert said[-1] == str(trial.out / "report.html")
    shown = page_of(trial)
    assert expected.headline() in shown.text
    assert f"vlm-lens {trial.study.name} --data one" in shown.text
    assert_no_hooks(trial.model)


def test_every_option_reaches_its_parameter(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {option.name: another(option) for option in trial.study.options}
    words = [w for option in trial.study.options for w in words_of(option, expected[option.name])]
    received: dict[str, Any] = {}

    def record(*positional: Any, **options: Any) -> Result:
        received.update(options, positional=positional)
        raise ValueError("seen enough")

    monkeypatch.setattr(import_module(trial.study.module), trial.study.function, record)
    assert "seen enough" in refusal(trial, capsys, *words)
    model, samples = received.pop("positional")
    run = received.pop("run")
    assert received == expected
    assert model is trial.model
    assert samples == (trial.datasets if trial.study.has_datasets else trial.datasets["one"])
    assert run.folder == trial.out
    assert run.batch_size == trial.batch_size


def test_defaults_are_those_of_the_function(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(trial.study.module)
    parameters = inspect.signature(getattr(module, trial.study.function)).parameters

    def record(*_: Any, **options: Any) -> Result:
        for name, value in options.items():
            default = parameters[name].default
            assert name == "run" or value == (list(default) if isinstance(value, list) else default)
        raise ValueError

    monkeypatch.setattr(module, trial.study.function, record)
    assert replace(trial, options={})() == 2


# Samples that cannot be used ----------------------------------------------------------------------


def unreadable(folder: Path, sample: Sample) -> Sample:
    return replace(sample, images=[cut_off(folder)])


def poisoned(trial: Trial) -> tuple[HookedVLM, str]:
    """A model that makes something infinite of a word, which is nowhere in the samples."""
    model = fresh()
    used = {w for of in trial.datasets.values() for s in of for w in f"{s.text} {s.answer}".split()}
    word = next(word for word in model.tokenizer.get_vocab() if word.isalpha() and word not in used)
    token = model.tokenizer.convert_tokens_to_ids(word)
    model.hf_model.get_input_embeddings().weight.data[token, 3] = torch.inf
    return model, word


@pytest.mark.sampled
@pytest.mark.parametrize("where", ["first", "last"])
def test_samples_that_cannot_be_used_are_left_out_and_named(
    trial: Trial, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    model, word = poisoned(trial)

    def worse(samples: list[Sample]) -> list[Sample]:
        one, two = samples[:2]
        bad = [unreadable(tmp_path, one), replace(two, text=f"{two.text} {word}")]
        return [*bad, *samples] if where == "first" else [*samples, *bad]

    assert replace(trial.changed(worse), model=model)() == 0
    said = capsys.readouterr().out
    notes = [line.removeprefix("Note: ") for line in said.splitlines() if line.startswith("Note: ")]
    shown = page_of(trial)
    assert all(" ".join(note.split()) in shown.text for note in notes)
    assert any("truncated" in note or "image" in note for note in notes), said
    assert any("NaN" in note for note in notes), said
    assert len([note for note in notes if "left out" in note]) >= 2
    assert_no_hooks(model)


# Hooks --------------------------------------------------------------------------------------------


@contextmanager
def failing(model: HookedVLM, *, after: int) -> Iterator[list[int]]:
    """Has a model fail after so many forwards; counts them."""
    calls: list[int] = []

    def fail(module: Any, args: Any) -> None:
        calls.append(len(calls))
        if len(calls) > after:
            raise RuntimeError("no more")

    handle = model.hf_model.register_forward_pre_hook(fail)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.sampled
@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_no_hook_is_left_after_an_exception(trial: Trial, share: float) -> None:
    after = 0
    if share:
        with failing(trial.model, after=10**9) as calls:
            assert replace(trial, out=trial.out.with_name("whole"))() == 0
        after = int(share * len(calls))
    with failing(trial.model, after=after), pytest.raises(RuntimeError, match="no more"):
        trial()
    assert_no_hooks(trial.model)


# The page -----------------------------------------------------------------------------------------


def attacked(samples: list[Sample]) -> list[Sample]:
    """The same with markup in every text from outside; every second answer is right still."""
    return [
        replace(
            sample,
            text=f"{sample.text} {ATTACK}" if i % 4 == 3 else sample.text,
            answer=ATTACK if i % 4 == 3 else sample.answer,
            category=f"{sample.category} {ATTACK}",
        )
        for i, sample in enumerate(samples)
    ]


def test_texts_from_outside_are_shown_as_they_are(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    named = replace(trial, out=trial.out.with_name("<script>alert(3)"))
    assert named.changed(attacked)() == 0
    shown = page_of(named)
    assert shown.count("img") == 0
    assert "<script>alert(3)" in shown.text  # the folder, in the command
    written = (named.out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in written
    assert "<img src=x" not in written
    for figure in shown.figures:
        drawn = re.sub(r'"legendgroup": "[^"]*"', "", json.dumps(figure))  # only a name
        assert "<script>" not in drawn  # plotly reads some markup in its labels
    if "categories" in trial.study.needs:
        assert ATTACK in capsys.readouterr().out


def test_names_of_files_and_folders_are_shown_as_they_are(trial: Trial, tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(4)"
    folder.mkdir()
    lines = []
    for i, sample in enumerate(trial.datasets["one"]):
        name = f"<img src=x onerror=alert({i})>.png"
        sample.images[0].save(folder / name)
        told = {"text": sample.text, "answer": sample.answer, "category": sample.category}
        lines.append({"file_name": name, **told})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert trial("--data", str(folder)) == 0
    shown = page_of(trial)
    assert "<script>alert(4)" in shown.text
    assert shown.count("img") == 0


# Families -----------------------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize(
    "name", ["qwen2_5_vl", "mllama", "instructblip-t5", "llava_next", "gpt2", "clip-tower"]
)
def test_other_families_work_or_are_refused_in_a_sentence(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    trial = Trial.of(study, tmp_path / "out", name=name)
    code = trial()
    said, err = capsys.readouterr()
    assert_no_hooks(trial.model)
    if code == 0:
        assert_close(type(trial.found()).load(trial.out).packed(), trial.found().packed())
        page_of(trial)
    else:
        assert code == 2
        assert one_line(err).startswith(f"vlm-lens {study.name}: error: ")
        assert said == ""


def test_the_table_of_small_options_is_of_studies_and_their_options(study: Study) -> None:
    assert {*SMALL} <= {known.name for known in STUDIES}
    assert {*SMALL.get(study.name, {})} <= {option.name for option in study.options}

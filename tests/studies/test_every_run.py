"""What every study's command does where it was stopped, and in a folder that has something.

Like `test_every_study.py`, for every study by its being declared.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import assert_no_hooks
from tests.interrupting import Killed, interrupted
from tests.studies.standard import (
    EVERY,
    Trial,
    another,
    files_in,
    fresh,
    one_line,
    refusal,
    words_of,
)
from tests.test_cli_search import watch
from tests.tiny import picture
from vlm_lens.results import Result

pytestmark = EVERY

PLACES = pytest.mark.parametrize("share", [0.5, 0.0, 0.25, 0.75, 1.0])
"""Where something ends a command, as a share of the way."""


# Going on -----------------------------------------------------------------------------------------


@pytest.fixture
def whole(trial: Trial) -> dict[str, bytes]:
    """The files of a command that ran to its end, which are in the way no more."""
    assert trial() == 0
    files = files_in(trial.out)
    trial.out.rename(trial.out.with_name("whole"))
    return files


@pytest.mark.sampled
@PLACES
def test_stopped_and_started_again_it_ends_the_same(
    trial: Trial, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        told = watch(patched, "scored", lambda done, total: (done, total))
        assert trial() == 0
    whole = files_in(trial.out)
    trial.out.rename(trial.out.with_name("whole"))
    with pytest.MonkeyPatch.context() as patched:
        watch(patched, "scored", lambda *_: None, stop_after=1 + round(share * (len(told) - 1)))
        assert trial() == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("interrupted; the same command goes on from what is done")
    assert_no_hooks(trial.model)
    assert not (trial.out / "report.html").exists()
    assert trial() == 0
    assert files_in(trial.out) == whole


@pytest.mark.sampled
@PLACES
@pytest.mark.parametrize("killed", [True, False])
def test_whatever_ends_it_the_same_command_goes_on(
    trial: Trial, capsys: pytest.CaptureFixture[str], share: float, killed: bool
) -> None:
    last = trial.operations() - 1
    whole = files_in(trial.out)
    trial.out.rename(trial.out.with_name("whole"))
    with suppress(Killed), interrupted(round(share * last), killed=killed) as failed:
        capsys.readouterr()
        assert trial() == 1
        assert "Make room and run the same command" in one_line(capsys.readouterr().err)
    assert failed
    assert_no_hooks(trial.model)
    assert trial() == 0
    assert files_in(trial.out) == whole


def test_once_it_is_done_it_runs_nothing_again(trial: Trial, monkeypatch: Any) -> None:
    assert trial() == 0
    whole, told = files_in(trial.out), watch(monkeypatch, "scored", lambda *given: given)
    assert trial() == 0
    assert files_in(trial.out) == whole
    assert all(done == total for done, total in told)


# What is in the folder already --------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("damage", [b"", b"{}", b'{"format": "vlm_lens.result", '])
def test_a_damaged_result_is_refused(
    trial: Trial,
    whole: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
    damage: bytes,
) -> None:
    trial.out.with_name("whole").rename(trial.out)
    kind = {f"{found.KIND}.json" for found in Result.__subclasses__()}
    results = [trial.out / name for name in whole if Path(name).name in {*kind, "run.json"}]
    for path in results:
        before = path.read_bytes()
        path.write_bytes(damage)
        if path.parent == trial.out and path.name != "run.json":
            assert trial() == 0  # quickly made again
        else:
            line = refusal(trial, capsys)
            assert "damaged" in line
            assert f"o go on, delete '{path}'" in line
        path.write_bytes(before)
    assert trial() == 0
    assert files_in(trial.out) == whole


def another_model(trial: Trial) -> Trial:
    model = fresh()
    model.hf_model.get_output_embeddings().weight.data[0, 0] += 1
    return replace(trial, model=model)


def others(**change: Any) -> Callable[[Trial], Trial]:
    return lambda trial: trial.changed(
        lambda samples: [replace(samples[0], **change), *samples[1:]]
    )


OTHERS: list[tuple[Callable[[Trial], Trial], str]] = [
    (another_model, "weights"),
    (lambda trial: replace(trial, batch_size=3), "batch-size"),
    (others(text="what color is left ?"), "samples"),
    (others(answer="two"), "samples"),
    (others(category="place"), "samples"),
    (others(images=[picture(77)]), "samples"),
    (lambda trial: trial.changed(lambda samples: samples[:-1]), "samples"),
]
"""Everything that a folder is not for, and what is said to differ."""


def test_something_else_in_its_folder_is_refused(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        watch(patched, "scored", lambda *_: None, stop_after=1)
        assert trial() == 130
    before = files_in(trial.out)
    for changed, what in OTHERS:
        line = refusal(changed(trial), capsys)
        assert f"holds the results of another run, which differs in {what}: it was made by" in line
        assert files_in(trial.out) == before


def test_other_options_in_its_folder_are_refused(
    trial: Trial, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        watch(patched, "scored", lambda *_: None, stop_after=1)
        assert trial() == 130
    for option in trial.study.options:
        if option.name == "controls":  # they can be added later
            continue
        line = refusal(trial, capsys, *words_of(option, another(option)))
        assert f"which differs in {option.flag[2:]}: it was made by" in line

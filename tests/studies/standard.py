"""What the standard tests of studies run on: every study there is, tiny models and tiny data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import TEXT_MODELS, build
from tests.handing_out import hand_out
from tests.interrupting import interrupted
from tests.page import Page, assert_self_contained
from tests.tiny import build_tiny, picture
from vlm_lens import HookedVLM, Sample
from vlm_lens.cli import main
from vlm_lens.data.imagefolder import load_imagefolder
from vlm_lens.passes import Run
from vlm_lens.passes.answers import greedy_tokens
from vlm_lens.studies.known import studies
from vlm_lens.studies.options import Option, Study
from vlm_lens.whole_file import is_unfinished

STUDIES = [study for study in studies() if isinstance(study, Study)]
EVERY = pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>"

SMALL: dict[str, dict[str, Any]] = {
    "culture": {"share": 0.05, "judged": 0.5, "seeds": (0,)},
    "miner": {"ratio": 0.2, "ratios": (0.2,), "n_measured": 2, "seeds": (0,), "max_new_tokens": 2},
    "types": {"top_samples": 2, "max_new_tokens": 2},
}
"""Options of studies whose defaults want more samples or neurons than there are here."""

GROUPS = ("color", "place")
_TEXTS = ("what color is the circle ?", "is the square red ?", "what is left .", "right : blue ?")
_N = 8
_LONGEST = 20


# Models and data ----------------------------------------------------------------------------------


@cache
def built(name: str = "llava") -> HookedVLM:
    """A tiny model; shared, so leave it as it is."""
    return fresh(name)


def fresh(name: str = "llava") -> HookedVLM:
    """A tiny model in double precision whose answers are short: every second word ends them."""
    if name == "llava":
        model = build_tiny("clip-llama", dtype=torch.float64).model
    else:
        hf, processor = build(name, dtype=torch.float64)
        model = HookedVLM(hf, processor=processor)
    if model.text is not None:
        words = sorted(model.tokenizer.get_vocab().values())
        model.hf_model.generation_config.eos_token_id = words[::2]
    return model


@cache
def _samples(name: str, seed: int) -> tuple[Sample, ...]:
    """Samples of two groups, with the answers that the model gives itself."""
    model, has_images = built(name), name not in TEXT_MODELS
    found = []
    for i in range(_N):
        images = [picture(seed + i)] if has_images else []
        words = " ".join(["left", "a", "one"][: i % 3])
        sample = Sample(images, f"{_TEXTS[i % 4]} {words}".strip(), "red", GROUPS[i % 2])
        found.append(replace(sample, answer=own_answer(model, sample)) if model.text else sample)
    return tuple(found)


def own_answer(model: HookedVLM, sample: Sample) -> str:
    """What a model answers."""
    inputs = model.prepare(images=sample.images or None, text=sample.text)
    assert model.text is not None
    tokens = greedy_tokens(model, inputs, max_new_tokens=_LONGEST)
    new = tokens[0, model.text.n_before(inputs) :]
    return model.tokenizer.decode(new, skip_special_tokens=True).strip()


# A command ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A study's command, and everything that it is given.

    Attributes:
        study: The study.
        out: Where to.
        model: What it loads, whatever it asks for.
        datasets: What it reads, likewise.
        options: Of the study.
        batch_size: How many samples run at once.
    """

    study: Study
    out: Path
    model: HookedVLM
    datasets: dict[str, list[Sample]]
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 2

    @classmethod
    def of(cls, study: Study, out: Path, *, name: str = "llava") -> Trial:
        """One on a tiny model, with little data."""
        seeds = {"one": 0, "two": 100} if study.has_datasets else {"one": 0}
        datasets = {called: [*_samples(name, seed)] for called, seed in seeds.items()}
        return cls(study, out, built(name), datasets, SMALL.get(study.name, {}))

    @property
    def arguments(self) -> list[str]:
        """The command as it is typed."""
        named = [word for name in self.datasets for word in ("--data", name)]
        own = [word for option in self.study.options for word in self._words(option)]
        return [self.study.name, *named, *own, *_words(batch_size=self.batch_size, out=self.out)]

    def _words(self, option: Option) -> list[str]:
        if option.name not in self.options:
            return []
        return words_of(option, self.options[option.name])

    def __call__(self, *more: str) -> int:
        """Runs the command; gives its exit code."""
        with pytest.MonkeyPatch.context() as patched:
            hand_out(patched, self.model)
            patched.setattr("vlm_lens.data.load_samples", lambda name, **_: self._read(name))
            return main([*self.arguments, *more])

    def _read(self, name: str) -> list[Sample]:
        return [*self.datasets[name]] if name in self.datasets else load_imagefolder(name)

    def found(self, *, batch_size: int = 16) -> Any:
        """What the study's function gives."""
        function = getattr(import_module(self.study.module), self.study.function)
        given = self.datasets if self.study.has_datasets else self.datasets["one"]
        return function(self.model, given, **self.options, run=Run(batch_size=batch_size))

    def changed(self, change: Any) -> Trial:
        """The same with other samples."""
        datasets = {name: change([*samples]) for name, samples in self.datasets.items()}
        return replace(self, datasets=datasets)

    def operations(self) -> int:
        """How many file operations the command does, run to its end."""
        seen: list[str] = []
        with interrupted(10**9, seen=seen):
            assert self() == 0
        return len(seen)


def _words(**options: object) -> list[str]:
    return [
        word for name, it in options.items() for word in (f"--{name}".replace("_", "-"), f"{it}")
    ]


def words_of(option: Option, value: Any) -> list[str]:
    """An option as it is typed."""
    if option.kind == "bool":
        return [option.flag if value else f"--no-{option.flag[2:]}"]
    return [option.flag, *(map(str, value) if option.is_many else [str(value)])]


def another(option: Option) -> Any:
    """A value of an option that is not its default."""
    if option.kind == "bool":
        return not option.default
    if option.is_many:
        one = replace(option, is_many=False)
        return [another(replace(one, default=value)) for value in option.default]
    match option.kind:
        case "int":
            return (option.default or 0) + 1
        case "float":
            return (option.default or 0) / 2 + 0.125
    return next((choice for choice in option.choices if choice != option.default), "another")


# What is compared ---------------------------------------------------------------------------------


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file but those that were never finished, dates left out."""
    return {
        str(path.relative_to(folder)): re.sub(rb"\d{4}-\d\d-\d\dT[\d:.+]+", b"", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not is_unfinished(path)
    }


def assert_close(one: Any, other: Any, where: str = "") -> None:
    """Values as `Result.packed` gives them, floats to rounding and everything else exactly."""
    if where.endswith(("/date", "/batch_size")):
        return
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for name in one:
            assert_close(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}/{i}")
    elif isinstance(one, torch.Tensor) and one.is_floating_point():
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, equal_nan=True, msg=where)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7, nan_ok=True), where
    else:
        assert one == other, where


def one_line(err: str) -> str:
    """The last line of a refused command, after its progress and notes."""
    *before, last = err.splitlines()
    assert all(line.startswith("[") or ": note: " in line for line in before), err
    return last


def page_of(trial: Trial) -> Page:
    """The page that a command wrote, which asks for nothing."""
    shown = Page((trial.out / "report.html").read_text(encoding="utf-8"))
    assert_self_contained(shown)
    return shown


def refusal(trial: Trial, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line that a refused command says."""
    capsys.readouterr()
    assert trial(*more) == 2
    said, err = capsys.readouterr()
    assert said == ""
    last = one_line(err)
    assert last.startswith(f"vlm-lens {trial.study.name}: error: ")
    return last

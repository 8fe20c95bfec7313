"""The commands of studies: options, samples, progress, going on and the page, once for all."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import InputError, refusing
from vlm_lens.cli.folder import RunFolder, add_out
from vlm_lens.cli.page import publish
from vlm_lens.cli.progress import Bars, Steps
from vlm_lens.cli.prompts import check_prompts
from vlm_lens.cli.samples import (
    add_batch_size,
    add_model,
    add_number,
    add_source,
    add_sources,
    check_least,
    checksums,
    load_model,
    read_datasets,
    read_samples,
)
from vlm_lens.cli.several import are_several, together
from vlm_lens.cli.values import finite, named
from vlm_lens.counted import counted
from vlm_lens.studies.known import BrokenStudyError, studies
from vlm_lens.studies.options import Option, Study

if TYPE_CHECKING:
    from vlm_lens.data import Sample
    from vlm_lens.results import Result

    Datasets = dict[str, list[Sample]]

_TYPES = {"int": int, "float": finite, "str": named}
_ONE = "samples"
"""The name of a single data set."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds a command for each study to the parser; says which ones cannot be read.

    The parser has all other commands already, so that no study is called like one.
    """
    for study in studies(taken=commands.choices):
        if isinstance(study, BrokenStudyError):
            print(f"vlm-lens: note: left out is {study}", file=sys.stderr)
        else:
            _add(commands, study)


def _add(commands: argparse._SubParsersAction, study: Study) -> None:
    what = study.summary.rstrip(".")
    about = f"{study.summary} {study.description} ({study.paper})"
    parser = commands.add_parser(study.name, help=_lowered(what), description=about)
    parser.set_defaults(run=partial(run, study))
    add_model(parser)
    group = add_sources(parser) if study.has_datasets else add_source(parser, task=study.task)
    of = " of each data set" if study.has_datasets else ""
    add_number(group, default=study.n, of=of)
    group = parser.add_argument_group(study.name)
    for option in study.options:
        _add_option(group, option)
    add_batch_size(group)
    add_out(parser, group, default=study.name)


def _lowered(text: str) -> str:
    return f"{text[0].lower()}{text[1:]}".replace("%", "%%")


def _add_option(group: argparse._ArgumentGroup, option: Option) -> None:
    shown = " ".join(map(str, option.default or ())) if option.is_many else option.default
    has_default = option.default is not None and option.kind != "bool"
    default = f" (default: {shown})".replace("%", "%%") if has_default else ""
    text = f"{_lowered(option.help.rstrip('.'))}{default}"
    add = partial(group.add_argument, option.flag, dest=option.name, help=text)
    if option.kind == "bool":
        action = argparse.BooleanOptionalAction if option.default else "store_true"
        add(action=action, default=option.default)
        return
    many: dict[str, Any] = {"nargs": "+"} if option.is_many else {}
    if option.choices:
        many["choices"] = option.choices
    default = list(option.default) if option.is_many and option.default else option.default
    metavar = None if option.choices else {"int": "N", "float": "X", "str": "NAME"}[option.kind]
    add(type=_TYPES[option.kind], default=default, metavar=metavar, **many)


def run(study: Study, arguments: argparse.Namespace, *, command: str) -> None:
    """Runs a study, alone or as one of several processes."""
    with together():
        _run(study, arguments, command)


def _run(study: Study, arguments: argparse.Namespace, command: str) -> None:
    """What can be refused without the model is refused before it is loaded."""
    step = Steps()
    check_least(arguments, n=1, batch_size=1)
    folder = RunFolder.of(arguments, command)
    datasets = _read_once(study, arguments)
    notes = _check_needs(study, datasets)
    given = {option.name: getattr(arguments, option.name) for option in study.options}
    function = _checked(study, _as_declared(study, datasets), given)
    step(f"loading {arguments.model}")
    model = load_model(arguments)
    from vlm_lens.ranks import is_first, shared

    check_prompts(model, datasets)
    every = [sample for samples in datasets.values() for sample in samples]
    shared(lambda: folder.claim(**checksums(model, every)))
    step(f"{study.title}: {counted(len(every), 'sample')}")
    work = partial(function, model, _as_declared(study, datasets), **given)
    result = _result(work, folder, arguments.batch_size)
    if is_first():
        about = {"Model": arguments.model, "Samples": f"{len(every):,}"}
        _write_down(study, folder, result, about, notes, step)


def _write_down(
    study: Study,
    folder: RunFolder,
    result: Result,
    about: Mapping[str, str],
    notes: Sequence[str],
    step: Steps,
) -> None:
    """Writes the result and its page, and prints what was found and where that is."""
    from vlm_lens.studies.page import lines, render_study

    folder.derive(result, kind=result.KIND)
    step("writing the report")
    told = {"options": folder.options, "command": folder.command}
    html = render_study(study, result, about=about, notes=notes, **told)
    publish(folder, html, said=lines(result, notes=notes), step=step)


def _read_once(study: Study, arguments: argparse.Namespace) -> Datasets:
    """The samples, which one process reads for all."""
    if not are_several():
        return _read(study, arguments)
    from vlm_lens.ranks import shared

    return shared(lambda: _read(study, arguments))


def _read(study: Study, arguments: argparse.Namespace) -> Datasets:
    if study.has_datasets:
        return read_datasets(arguments, n=arguments.n, seed=arguments.seed)
    return {_ONE: read_samples(arguments, n=arguments.n, seed=arguments.seed, task=study.task)}


def _as_declared(study: Study, datasets: Datasets) -> Datasets | list[Sample]:
    return datasets if study.has_datasets else datasets[_ONE]


def _check_needs(study: Study, datasets: Datasets) -> list[str]:
    """Leaves out samples without images where they are needed, and says so.

    Raises:
        InputError: Samples have not what the study needs.
    """
    notes = []
    for name, samples in datasets.items():
        of = f" of {name!r}" if study.has_datasets else ""
        if "answers" in study.needs and not any((s.answer or "").strip() for s in samples):
            raise InputError(
                f"{study.name} needs answers, but none of the {len(samples)} samples{of} has one"
            )
        if "categories" in study.needs and any(s.category is None for s in samples):
            raise InputError(f"{study.name} needs categories, but not all samples{of} have one")
        if "images" in study.needs:
            notes += _without_images(study, samples, of)
    return notes


def _without_images(study: Study, samples: list[Sample], of: str) -> list[str]:
    n, samples[:] = len(samples), [sample for sample in samples if sample.images]
    if not samples:
        raise InputError(f"{study.name} needs images, but none of the {n} samples{of} has one")
    missing = n - len(samples)
    return [f"{counted(missing, 'sample')}{of} left out: no image"] if missing else []


def _checked(
    study: Study, samples: Datasets | list[Sample], given: Mapping[str, Any]
) -> Callable[..., Result]:
    """The study's function; what it refuses without a model is refused now."""
    module = import_module(study.module)
    if study.check is not None:
        with refusing():
            getattr(module, study.check)(samples, **given)
    return getattr(module, study.function)


def _result(work: Callable[..., Result], folder: RunFolder, batch_size: int) -> Result:
    """What the study finds; samples that are left out are in its notes, and told there."""
    from vlm_lens.passes import Run, SamplesLeftOutWarning
    from vlm_lens.ranks import is_first

    try:
        with warnings.catch_warnings(), refusing(), Bars() as bars:
            warnings.simplefilter("ignore", SamplesLeftOutWarning)
            return work(run=Run(folder=folder.path, batch_size=batch_size, tell=bars.tell))
    except InputError:
        if is_first():
            folder.release()
        raise

"""``vlm-lens types``: which neurons are visual, text, multi-modal or unknown."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.folder import RunFolder, add_out
from vlm_lens.cli.page import noted, publish
from vlm_lens.cli.progress import Steps, bar
from vlm_lens.cli.samples import (
    add_batch_size,
    add_longest,
    add_model,
    add_number,
    add_source,
    check_least,
    checksums,
    load_model,
    read_samples,
)
from vlm_lens.cli.values import finite
from vlm_lens.counted import counted

if TYPE_CHECKING:
    from vlm_lens.analyses.neuron_types_result import NeuronTypes
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM

_TASK = "caption"
_THRESHOLDS = {
    "T_v": (finite, 2.0, "a visual token is activated above this, from 0 to 10"),
    "n_v": (int, 4, "so many of them make a sample visual"),
    "T_t": (finite, 3.0, "a text token is activated above this"),
    "n_t": (int, 2, "so many of them make a sample text"),
}


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser."""
    what = "say which neurons are visual, text, multi-modal or unknown"
    how = "That is read off the samples in which they are most active"
    parser = commands.add_parser("types", help=what, description=f"S{what[1:]}. {how}.")
    parser.set_defaults(run=run)
    add_model(parser)
    group = add_source(parser, task=_TASK)
    add_number(group, default=500)
    answers = "behind the prompts: the model's own, or those given (default: %(default)s)"
    group.add_argument("--answers", choices=("own", "given"), default="own", help=answers)
    add_longest(group, default=64)
    _add_types(parser)


def _add_types(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("types")
    add = group.add_argument
    sites = "act, post, output or a glob of hook names (default: %(default)s)"
    add("--sites", default="act", metavar="NAME", help=sites)
    component = "only its neurons (default: %(default)s)"
    add("--component", default="language_model", metavar="NAME", help=component)
    top = "samples that decide on a neuron, those where it is most active (default: %(default)s)"
    add("--top-samples", type=int, default=50, metavar="N", help=top)
    for name, (kind, default, what) in _THRESHOLDS.items():
        option, what = f"--{name.replace('_', '-')}", f"{what} (default: %(default)s)"
        add(option, dest=name, type=kind, default=default, metavar="X", help=what)
    high = "a share above this is of high confidence (default: %(default)s)"
    add("--high-confidence", type=finite, default=0.8, metavar="X", help=high)
    rate = (
        "rate of false discoveries up to which a label is more than chance (default: %(default)s)"
    )
    add("--alpha", type=finite, default=0.05, metavar="X", help=rate)
    add_batch_size(group)
    add_out(parser, group, default="types")


def run(arguments: argparse.Namespace, *, command: str) -> None:
    """Everything that can be refused is refused before the model is loaded, or right after it."""
    step = Steps()
    folder, samples, notes = _checked(arguments, command)
    step(f"loading {arguments.model}")
    model = load_model(arguments)
    classify = _classify(model, arguments)
    _check_tokens(classify, samples[: arguments.batch_size])
    folder.claim(**checksums(model, samples))
    step(f"typing neurons in two passes over {len(samples):,} samples")
    types = _types(folder, partial(classify, samples, top_samples=arguments.top_samples))
    _write_down(folder, types, notes, arguments, step)


def _checked(
    arguments: argparse.Namespace, command: str
) -> tuple[RunFolder, list[Sample], list[str]]:
    """The folder, the samples with images, and notes about others, without the model."""
    check_least(arguments, n=1, batch_size=1, max_new_tokens=1, top_samples=1)
    folder = RunFolder.of(arguments, command)
    every = read_samples(arguments, n=arguments.n, seed=arguments.seed, task=_TASK)
    samples = [sample for sample in every if sample.images]
    if not samples:
        raise InputError(
            f"types are about images and answers, but none of the {len(every)} samples has an image"
        )
    if arguments.answers == "given" and not any((s.answer or "").strip() for s in samples):
        raise InputError(
            f"--answers given needs answers, but none of the {len(samples)} samples has one"
        )
    _check_thresholds(arguments)
    missing = len(every) - len(samples)
    return folder, samples, [f"{counted(missing, 'sample')} left out: no image"] if missing else []


def _check_thresholds(arguments: argparse.Namespace) -> None:
    from vlm_lens.analyses.neuron_types_counts import Thresholds
    from vlm_lens.analyses.neuron_types_passes import Setting
    from vlm_lens.analyses.neuron_types_result import check_shares

    with reading_input():
        check_shares(high_confidence=arguments.high_confidence, alpha=arguments.alpha)
        Setting(
            thresholds=Thresholds(**{name: getattr(arguments, name) for name in _THRESHOLDS}),
            comparison=">=",
            visual_tokens="image",
            text_tokens="answer text",
            maximum_over=None,
            grid={},
            top_samples=arguments.top_samples,
        )


def _classify(model: HookedVLM, arguments: argparse.Namespace) -> Callable[..., NeuronTypes]:
    from vlm_lens.analyses import neuron_types

    same = ("sites", "component", "high_confidence", "alpha", "answers", "max_new_tokens")
    options = {name: getattr(arguments, name) for name in (*same, "batch_size", *_THRESHOLDS)}
    return partial(neuron_types.classify, model, **options)


def _check_tokens(classify: Callable[..., NeuronTypes], samples: Sequence[Sample]) -> None:
    """Refuses what only the model knows, by typing neurons on the first batch."""
    with reading_input(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classify(samples, top_samples=1, grid={})


def _types(folder: RunFolder, classify: Callable[..., NeuronTypes]) -> NeuronTypes:
    from vlm_lens.analyses.neuron_types_result import NeuronTypes
    from vlm_lens.passes import SamplesLeftOutWarning

    with bar("typing", "batches") as shown, warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplesLeftOutWarning)  # the page says so too
        make = partial(classify, checkpoint=folder.checkpoint, on_batch=shown.scored)
        return folder.kept("", kind=NeuronTypes.KIND, load=NeuronTypes.load, make=make)


def _write_down(
    folder: RunFolder,
    types: NeuronTypes,
    notes: Sequence[str],
    arguments: argparse.Namespace,
    step: Steps,
) -> None:
    """Writes the page, and prints what was found and where that is."""
    from vlm_lens.report import types_words as words
    from vlm_lens.report.types import of_labels, render_types

    step("writing the report")
    name = arguments.model
    html = render_types(
        types, model_name=name, notes=notes, options=folder.options, command=folder.command
    )
    sentences = [*words.on_chance(types), *words.on_confidence(types), *words.on_layers(types)]
    said: list[Any] = [f"{words.headline(types, name)}.", *sentences, *words.on_thresholds(types)]
    said += [*noted([*notes, *words.on_left_out(types)]), "", of_labels(types)]
    publish(folder, html, said=said, step=step)

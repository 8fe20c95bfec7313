"""``vlm-lens miner``: which neurons each modality needs."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.folder import RunFolder, add_out
from vlm_lens.cli.miner_controls import Controls, add_controls, check_controls
from vlm_lens.cli.page import noted, publish
from vlm_lens.cli.progress import Steps, bar
from vlm_lens.cli.samples import (
    add_batch_size,
    add_model,
    add_number,
    add_sources,
    check_least,
    checksums,
    load_model,
    read_datasets,
)
from vlm_lens.cli.values import finite

if TYPE_CHECKING:
    from vlm_lens.analyses.miner_scores import ModalityScores
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM
    from vlm_lens.neurons import NeuronSet
    from vlm_lens.passes import Batch
    from vlm_lens.report.mined import Mined

_SPLITS = ("special_text_separate", "special_text_as_one", "prompt")
_STRATEGIES = ("LA_MU", "LU_MA", "adaptive", "uniform")
_METRICS = ("prob", "mean", "max", "attn_k", "attn_q")
_WEIGHTS = (0.0, 0.25, 0.25, 0.5, 0.0)


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser."""
    what = "find the neurons that each modality needs (MINER)"
    how = "They are ranked by how active they are on its tokens, and by attention"
    parser = commands.add_parser("miner", help=what, description=f"F{what[1:]}. {how}.")
    parser.set_defaults(run=run)
    add_model(parser)
    group = add_sources(parser)
    add_number(group, default=100, of=" of each data set")
    _add_scores(parser)
    _add_selection(parser)
    group = add_controls(parser)
    add_out(parser, group, default="miner")


def _add_scores(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scores")
    add = group.add_argument
    sites = "act, post or a glob of hook names, one in each layer (default: %(default)s)"
    add("--sites", default="act", metavar="NAME", help=sites)
    split = f"which modalities are told apart: {', '.join(_SPLITS)} (default: %(default)s)"
    add("--separate", choices=_SPLITS, default=_SPLITS[0], metavar="NAME", help=split)
    weights = f"of the metrics {', '.join(_METRICS)} (default: the authors', 0 .25 .25 .5 0)"
    add("--metric-weights", nargs=5, type=finite, default=[*_WEIGHTS], metavar="X", help=weights)
    add_batch_size(group)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("selection").add_argument
    ratio = "share of all neurons, over all modalities (default: %(default)s)"
    add("--ratio", type=finite, default=0.02, metavar="X", help=ratio)
    how = f"how: {', '.join(_STRATEGIES)} (default: %(default)s)"
    add("--strategy", choices=_STRATEGIES, default=_STRATEGIES[0], metavar="NAME", help=how)


def run(arguments: argparse.Namespace, *, command: str) -> None:
    """Everything that can be refused is refused before the model is loaded, or right after it."""
    step = Steps()
    folder, datasets = _checked(arguments, command)
    step(f"loading {arguments.model}")
    model = load_model(arguments)
    names = _sites(model, arguments)
    _check_prompts(model, datasets)
    every = [sample for samples in datasets.values() for sample in samples]
    folder.claim(**checksums(model, every))
    step(f"scoring the neurons of {len(names)} layers on {len(every):,} samples")
    scores = _scores(folder, model, datasets, names, arguments)
    step("selecting those of each modality")
    found = _mined(folder, scores, arguments)
    if arguments.controls:
        found = Controls(folder, model, arguments, step).measured(found, datasets)
    _write_down(folder, found, arguments, step)


def _checked(
    arguments: argparse.Namespace, command: str
) -> tuple[RunFolder, dict[str, list[Sample]]]:
    """The folder and the data sets, as far as they can be checked without the model."""
    check_least(arguments, n=1, batch_size=1)
    if not 0 < arguments.ratio <= 1:
        raise InputError(f"expected --ratio above 0 and at most 1, got {arguments.ratio}")
    check_controls(arguments)
    folder = RunFolder.of(arguments, command)
    from vlm_lens.analyses.miner_scores import checked_weights

    with reading_input():
        checked_weights(arguments.metric_weights)
    datasets = read_datasets(arguments, n=arguments.n, seed=arguments.seed)
    for name, samples in datasets.items():
        if arguments.controls and not any((sample.answer or "").strip() for sample in samples):
            raise InputError(
                f"--controls grades answers, but none of the {len(samples)} samples of {name!r} "
                "has one"
            )
    return folder, datasets


def _sites(model: HookedVLM, arguments: argparse.Namespace) -> list[str]:
    from vlm_lens.analyses.miner_layers import layer_sites

    with reading_input():
        return layer_sites(model, arguments.sites)


def _check_prompts(model: HookedVLM, datasets: Mapping[str, Sequence[Sample]]) -> None:
    """Refuses a data set that the model cannot take; single samples may be left out later."""
    for name, samples in datasets.items():
        taken = []
        for has_images in (True, False):  # some models take no prompt without an image
            kind = [sample for sample in samples if bool(sample.images) == has_images]
            taken += [_first_taken(model, kind)] if kind else []
        if not any(batch is not None for batch, _ in taken):
            reason = next(reason for _, reason in taken)
            raise InputError(
                f"the model can take none of the {len(samples)} samples of {name!r}: {reason}"
            )
        for batch, _ in taken:
            if batch is not None:
                _check_forward(model, name, batch)


def _first_taken(model: HookedVLM, samples: Sequence[Sample]) -> tuple[Batch | None, str]:
    """The first sample that can be prepared, ready; or why the first of all cannot."""
    from vlm_lens.passes import Answers, make_batch
    from vlm_lens.passes.one_pass import REFUSED

    reason = ""
    for sample in samples:
        try:
            return make_batch(model, [sample], Answers()), ""
        except REFUSED as error:
            reason = reason or " ".join(str(error).split())
    return None, reason


def _check_forward(model: HookedVLM, name: str, batch: Batch) -> None:
    """Refuses prompts that can be prepared, but that the model does not run on."""
    from vlm_lens.passes.forwards import forward

    try:
        forward(model, batch)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(
            f"the model does not take prompts such as those of {name!r}: {reason}. Choose others "
            "with --tasks or --data"
        ) from error


def _scores(
    folder: RunFolder,
    model: HookedVLM,
    datasets: Mapping[str, Sequence[Sample]],
    names: list[str],
    arguments: argparse.Namespace,
) -> ModalityScores:
    from vlm_lens.analyses import miner
    from vlm_lens.analyses.miner_scores import ModalityScores
    from vlm_lens.passes import SamplesLeftOutWarning

    options = {"split": arguments.separate, "batch_size": arguments.batch_size, "sites": names}
    with bar("scoring", "batches") as shown, warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplesLeftOutWarning)  # the notes say so too
        score = partial(miner.score, model, datasets, **options)
        make = partial(score, checkpoint=folder.checkpoint, on_batch=shown.scored)
        return folder.kept("", kind=ModalityScores.KIND, load=ModalityScores.load, make=make)


def _mined(folder: RunFolder, scores: ModalityScores, arguments: argparse.Namespace) -> Mined:
    """What is selected, and how that is spread; it is quick, and made anew each time."""
    from vlm_lens.analyses import miner
    from vlm_lens.experiments.sets import by_layer, overlap
    from vlm_lens.report.mined import Mined

    how = {"ratio": arguments.ratio, "strategy": arguments.strategy}
    how["weights"] = arguments.metric_weights
    with reading_input():  # a ratio can be too small
        selected = miner.select(scores, **how)
    layers = by_layer(selected, sizes=scores.sizes)
    folder.derive(layers, kind=layers.KIND)
    some = {modality: neurons for modality, neurons in selected.items() if neurons}
    shared = overlap(some, sizes=scores.sizes) if len(some) > 1 else None
    if shared is not None:
        folder.derive(shared, kind=shared.KIND)
    _save(folder, selected)
    return Mined(
        model_name=arguments.model,
        scores=scores,
        selected=selected,
        layers=layers,
        overlap=shared,
        **how,
    )


def _save(folder: RunFolder, selected: Mapping[str, NeuronSet]) -> None:
    place = folder.path / "selected"
    place.mkdir(exist_ok=True)
    for modality, neurons in selected.items():
        neurons.save(place / f"{modality}.json")


def _write_down(
    folder: RunFolder, found: Mined, arguments: argparse.Namespace, step: Steps
) -> None:
    """Writes the page, and prints what was found and where that is."""
    from vlm_lens.report.miner import render_miner, sections
    from vlm_lens.report.miner_words import headline

    step("writing the report")
    html = render_miner(found, options=folder.options, command=folder.command)
    said: list[Any] = [f"{headline(found)}.", *noted(found.notes)]
    for section in sections(found):
        said += ["", section.title, *section.sentences, section.table]
    if not arguments.controls:
        said += ["", "Whether the model needs these neurons was not measured: see --controls."]
    publish(folder, html, said=said, step=step)

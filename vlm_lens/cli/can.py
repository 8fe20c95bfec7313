"""``vlm-lens can``: how few neurons a model collapses without, by gradient and activation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.controls import Table, make_tables
from vlm_lens.cli.folder import RunFolder
from vlm_lens.cli.progress import Steps, bar
from vlm_lens.cli.samples import (
    add_batch_size,
    add_data,
    add_model,
    add_number,
    check_least,
    check_text_alone,
    checksums,
    load_model,
    read_passages,
    read_samples,
)
from vlm_lens.cli.search import (
    BEST_SHOWN,
    add_search,
    check_prompt,
    check_search,
    search,
    search_options,
    target_of,
    write_down,
)
from vlm_lens.cli.values import finite

if TYPE_CHECKING:
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM
    from vlm_lens.results.scores import Scores

_MOST = 5000
_TEXT = ("language_model", "encoder", "decoder")
_LIKE_FOUND = {"by_component", "against_baselines", "against_artefacts"}


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser."""
    what = "find the fewest neurons that a model collapses without (CAN)"
    how = "They are ranked by gradient and activation, and masked best-ranked first"
    parser = commands.add_parser("can", help=what, description=f"F{what[1:]}. {how}.")
    parser.set_defaults(run=run)
    add_model(parser)
    group = add_data(parser, text="FILE", what="text file, cut into passages; in place of --data")
    add_number(group, default=100)
    _add_scores(parser)
    controls = "search by component, matrix and category too, and against baselines and artefacts"
    add_search(parser, max_k=_MOST, controls=controls, out="can")


def _add_scores(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scores")
    add = group.add_argument
    sites = "output (of linear layers), act, post, or a glob of hook names (default: %(default)s)"
    add("--sites", default="output", metavar="NAME", help=sites)
    add("--component", metavar="NAME", help="only its neurons, such as projector (default: all)")
    alpha = "exponent of the gradient, from 0 to 1 (default: %(default)s)"
    add("--alpha", type=finite, default=0.5, metavar="X", help=alpha)
    tokens = "how positions become one number (default: %(default)s)"
    add("--tokens", choices=("max", "mean", "sum", "last"), default="max", help=tokens)
    add_batch_size(group)


def run(arguments: argparse.Namespace, *, command: str) -> None:
    """Everything that can be refused is refused before the model is loaded, or right after it."""
    step = Steps()
    folder, samples = _checked(arguments, command)
    step(f"loading {arguments.model}")
    model = load_model(arguments)
    names = _names(model, samples, arguments)
    check_prompt(model, samples[0], target=target_of(arguments))
    folder.claim(**checksums(model, samples))
    step(f"scoring the neurons of {len(names)} hook points on {len(samples)} samples")
    scoring = _scoring(arguments, names)
    scores = _scores(folder, model, samples, scoring)
    step("searching for the fewest that the model collapses without")
    options = {**search_options(arguments), "batch_size": arguments.batch_size}
    from vlm_lens.analyses import can

    found = search(folder, model, partial(can.find_critical, model, samples, scores, **options))
    tables = {}
    if arguments.controls:
        tables = _tables(model, samples, scores, scoring, options, arguments.seeds)
    write_down(
        folder,
        found,
        best=scores.to_dataframe(BEST_SHOWN),
        comparisons=make_tables(folder, tables, shared=_LIKE_FOUND, step=step),
        model_name=arguments.model,
        step=step,
    )


def _checked(arguments: argparse.Namespace, command: str) -> tuple[RunFolder, list[Sample]]:
    """The folder and the samples, as far as they can be checked without the model."""
    check_text_alone(arguments)
    check_least(arguments, n=1, words=1)
    folder = RunFolder.of(arguments, command)
    if arguments.text is None:
        samples = read_samples(arguments, n=arguments.n, seed=arguments.seed)
    else:
        samples = read_passages(arguments, n=arguments.n)
    check_search(arguments, samples)
    from vlm_lens.analyses.importance import Importance

    with reading_input():
        Importance(alpha=arguments.alpha, tokens=arguments.tokens)
    if arguments.text is not None and arguments.tokens == "last":
        raise InputError("--tokens last is about answers, which --text has none of")
    return folder, samples


def _names(model: HookedVLM, samples: Sequence[Sample], arguments: argparse.Namespace) -> list[str]:
    """The hook points; without images, those that text reaches."""
    from vlm_lens.neurons.neuron import split_name
    from vlm_lens.neurons.sites import sites

    with reading_input():
        names = sites(model, arguments.sites, component=arguments.component)
    if any(sample.images for sample in samples):
        return names
    reached = [name for name in names if split_name(name)[0] in _TEXT]
    if not reached:
        raise InputError(
            "without an image nothing reaches the neurons that are asked for: give --data with "
            "images, or another --component or --sites"
        )
    return reached


def _scoring(arguments: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """What `can.score` is told."""
    return {
        "sites": names,
        "alpha": arguments.alpha,
        "tokens": arguments.tokens,
        "target": target_of(arguments),
        "batch_size": arguments.batch_size,
        "max_new_tokens": arguments.max_new_tokens,
    }


def _scores(
    folder: RunFolder, model: HookedVLM, samples: Sequence[Sample], scoring: dict[str, Any]
) -> Scores:
    from vlm_lens.analyses import can
    from vlm_lens.results.scores import Scores

    with bar("scoring", "batches") as shown:
        score = partial(can.score, model, samples, **scoring)
        make = partial(score, checkpoint=folder.checkpoint, on_batch=shown.scored)
        scores = folder.kept("", kind=Scores.KIND, load=Scores.load, make=make)
    if not scores.ranking(1):
        raise InputError("no neuron has a score above 0, so that there is none to mask")
    return scores


def _tables(
    model: HookedVLM,
    samples: Sequence[Sample],
    scores: Scores,
    scoring: dict[str, Any],
    options: dict[str, Any],
    seeds: Sequence[int],
) -> dict[str, Table]:
    """The searches of ``--controls``: those of several components, matrices and categories."""
    from vlm_lens.analyses import can, critical_tables
    from vlm_lens.neurons.neuron import split_name

    parts = dict.fromkeys(split_name(name)[0] for name in scores)
    text = next((part for part in parts if part in _TEXT), next(iter(parts)))
    like_this = partial(can.score, **scoring)
    ranked = {"ranking": scores, **options}
    tables: dict[str, Table] = {
        "by_component": partial(critical_tables.by_component, **ranked),
        "by_matrix": partial(critical_tables.by_matrix, component=text, **ranked),
        "by_category": partial(critical_tables.by_category, score=like_this, **options),
        "against_baselines": partial(critical_tables.against_baselines, seeds=seeds, **ranked),
        "against_artefacts": partial(critical_tables.against_artefacts, seeds=seeds, **ranked),
    }
    if len(parts) < 2:
        del tables["by_component"]
    if len({sample.category for sample in samples} - {None}) < 2:
        del tables["by_category"]
    return {name: partial(table, model, samples) for name, table in tables.items()}

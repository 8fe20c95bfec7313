"""``vlm-lens explore``: every neuron over an image and a question, as a page without a kernel."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.imports import importing
from vlm_lens.cli.progress import Steps
from vlm_lens.cli.question import add_question, check_question, read_question
from vlm_lens.cli.samples import add_model, load_model
from vlm_lens.cli.values import path

BUNDLED_SAMPLE = 0
"""Which of the bundled images is explored where none is named."""

_RESULTS = {
    "statistics": ("vlm_lens.statistics.neuron_statistics", "NeuronStatistics", "statistics"),
    "types": ("vlm_lens.analyses.neuron_types_result", "NeuronTypes", "types"),
    "modality_scores": ("vlm_lens.analyses.miner_scores", "ModalityScores", "modalities"),
    "critical": ("vlm_lens.analyses.critical", "CriticalNeurons", "critical"),
    "explanations": ("vlm_lens.analyses.explanations", "Explanations", "explanations"),
}
"""The kinds of results: their classes, and what `explore` calls them."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser."""
    what = "write a page to look at neurons over an image and in the words"
    parser = commands.add_parser(
        "explore", help=what, description=f"Answer a question about an image, and {what}."
    )
    parser.set_defaults(run=run)
    add_model(parser)
    add = parser.add_argument_group("question").add_argument
    add_question(add)
    add("--answer", metavar="TEXT", help="answer to put behind it (default: the model's own)")
    add = parser.add_argument_group("page").add_argument
    names = "hook points, as names or globs (default: the neurons of as many MLPs as fit)"
    add("--names", nargs="+", metavar="NAME", help=names)
    many = "most neurons of each hook point (default: %(default)s)"
    add("--neurons", type=int, default=512, metavar="N", help=many)
    first = "the one that is shown first, such as blocks.3.mlp.hook_post[42]"
    add("--neuron", metavar="NEURON", help=first)
    folders = "folders that can, pcicn, miner, types or explain have written: shown with neurons"
    add("--results", nargs="+", type=path, default=[], metavar="FOLDER", help=folders)
    out = "the page (default: %(default)s)"
    add("--out", type=path, default=Path("explorer.html"), metavar="PATH", help=out)


def run(arguments: argparse.Namespace, *, command: str) -> None:
    """Everything that can be refused is refused before the model is loaded, or right after it."""
    del command  # the page says nothing that would change with it
    check_question(arguments)
    step = Steps()
    with importing():
        from vlm_lens.explorer import explore
        from vlm_lens.pages.write import check_target
    if arguments.neurons < 1:
        raise InputError(f"expected --neurons of at least 1, got {arguments.neurons}")
    with reading_input():
        check_target(arguments.out)
        image, question = read_question(arguments, bundled=BUNDLED_SAMPLE)
        results = _results(arguments.results)
    step(f"loading {arguments.model}")
    model = load_model(arguments)
    step("answering")
    with reading_input():
        inputs = model.prepare(images=image, text=question)
        explorer = _explored(explore, model, inputs, arguments, results)
        step("reading activations, hook point by hook point")
        explorer.to_html(arguments.out, names=arguments.names, neurons=arguments.neurons)
    step("done")
    print(arguments.out)


def _explored(
    explore: Any, model: Any, inputs: Any, arguments: argparse.Namespace, results: dict[str, Any]
) -> Any:
    try:
        return explore(model, inputs, answer=arguments.answer, neuron=arguments.neuron, **results)
    except LookupError as error:  # of the neuron to start with
        raise InputError(str(error.args[0])) from error


def _results(folders: Sequence[Path]) -> dict[str, Any]:
    """Whatever results are in some folders, by what `explore` calls them."""
    from importlib import import_module

    found: dict[str, Any] = {}
    for folder in folders:
        kinds = [kind for kind in _RESULTS if (folder / f"{kind}.json").is_file()]
        if not kinds:
            expected = ", ".join(f"{kind}.json" for kind in _RESULTS)
            raise FileNotFoundError(f"there is no result in {str(folder)!r}: expected {expected}")
        for kind in kinds:
            module, name, keyword = _RESULTS[kind]
            if keyword in found:
                raise ValueError(f"there are several results of the kind {kind!r}: pass one")
            found[keyword] = getattr(import_module(module), name).load(folder)
    return found

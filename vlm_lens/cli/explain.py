"""``vlm-lens explain``: what neurons react to, and what that is worth as a prediction."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.explain_neurons import add_neurons, check_named, choose, named_neurons, places
from vlm_lens.cli.explain_ways import NO_DIFFERENCE, Ways, add_endpoint, add_ways, replies_in
from vlm_lens.cli.folder import RunFolder, add_out
from vlm_lens.cli.page import noted, publish
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

if TYPE_CHECKING:
    from vlm_lens.analyses.explanations import Explanations
    from vlm_lens.data import Sample
    from vlm_lens.neurons import Neuron, NeuronSet


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser."""
    what = "say what neurons react to, and score that as a prediction"
    how = "Of explanations on samples that were held out, beside the explanations of other neurons"
    parser = commands.add_parser("explain", help=what, description=f"S{what[1:]}: {how.lower()}.")
    parser.set_defaults(run=run)
    add_model(parser)
    group = add_data(parser, text="FILE", what="text file, cut into passages; in place of --data")
    add_number(group, default=200)
    add_batch_size(group)
    add_neurons(parser)
    add_ways(parser)
    add_endpoint(parser)
    add_out(parser, parser.add_argument_group("results"), default="explain")


def run(arguments: argparse.Namespace, *, command: str) -> None:
    """Everything that can be refused is refused before the model is loaded, or right after it."""
    step = Steps()
    ways, folder, named, samples = _checked(arguments, command)
    step(f"loading {arguments.model}")
    model = load_model(arguments)
    names = [] if named is not None else places(model, arguments)
    if named is not None:
        check_named(model, samples, named)
    folder.claim(**checksums(model, samples), named=_digest(named or ()))
    from vlm_lens.analyses.explain import explain
    from vlm_lens.analyses.explanations import Explanations

    def make() -> Explanations:
        with_what = {
            "explainer": ways.explainer(model),
            "simulator": ways.simulating(),
            "checkpoint": folder.checkpoint,
        }
        chosen = choose(model, samples, names, arguments) if named is None else named
        step(f"explaining {len(chosen):,} neurons on {len(samples):,} samples")
        return _explained(partial(explain, model, samples, chosen, **with_what), ways, step)

    load = partial(Explanations.load, samples=samples)
    found = folder.kept("", kind=Explanations.KIND, load=load, make=make, is_whole=_is_answered)
    _write_down(folder, found, arguments.model, step)


def _is_answered(found: Explanations) -> bool:
    """Whether an endpoint had a reply to everything; what it had none to is asked again."""
    return not found.parameters.get("unanswered")


def _digest(neurons: Iterable[Neuron]) -> str:
    """A checksum of neurons, which a file of the same name may have others of."""
    return hashlib.sha256(" ".join(map(str, neurons)).encode()).hexdigest()


def _checked(
    arguments: argparse.Namespace, command: str
) -> tuple[Ways, RunFolder, NeuronSet | None, list[Sample]]:
    """What is asked for, as far as it can be checked without the model."""
    check_least(arguments, n=2, batch_size=1, max_new_tokens=1, words=1)
    check_least(arguments, exemplars=1, random_exemplars=0)
    check_text_alone(arguments)
    for name, value in (("held-out", arguments.held_out), ("alpha", arguments.alpha)):
        if not 0 < value < 1:
            raise InputError(f"expected --{name} between 0 and 1, got {value}")
    if arguments.shuffles is not None and arguments.shuffles < 0:
        raise InputError(f"expected --shuffles of at least 0, got {arguments.shuffles}")
    ways = Ways.of(arguments)
    named = named_neurons(arguments)
    asked = {name: value for name, value in vars(arguments).items() if name not in NO_DIFFERENCE}
    folder = RunFolder.of(argparse.Namespace(**asked), command)
    if arguments.text is None:
        samples = read_samples(arguments, n=arguments.n, seed=arguments.seed)
    else:
        samples = read_passages(arguments, n=arguments.n)
    from vlm_lens.analyses.explaining.split import halves

    with reading_input():
        halves(samples, held_out=arguments.held_out, seed=arguments.seed)
    return ways, folder, named, samples


def _explained(like_this: Callable[..., Explanations], ways: Ways, step: Steps) -> Explanations:
    """Explains; what an endpoint refuses is the user's to mend."""
    from vlm_lens.analyses.chat import ChatError

    try:
        with bar("reading", "batches") as read, bar("explaining", "neurons") as told:
            return like_this(
                shuffles=ways.shuffles,
                on_cost=partial(ways.consent, step=step),
                on_batch=lambda done, total: read.scored(done, total or done),
                on_neuron=told.scored,
                **_options(ways.arguments),
            )
    except ChatError as error:
        kept = str(replies_in(ways.arguments.out))
        raise InputError(
            f"{' '.join(str(error).split())} The replies so far are in {kept!r}: the same command "
            "goes on from there"
        ) from error


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `explain` is told."""
    answers = {"own": "own", "answer": "given"}[arguments.target or "own"]
    return {
        "top": arguments.exemplars,
        "random": arguments.random_exemplars,
        "held_out": arguments.held_out,
        "alpha": arguments.alpha,
        "answers": None if arguments.text is not None else answers,
        "max_new_tokens": arguments.max_new_tokens,
        "batch_size": arguments.batch_size,
        "seed": arguments.seed,
    }


def _write_down(folder: RunFolder, found: Explanations, model_name: str, step: Steps) -> None:
    """Writes the page, and prints what was found and where that is."""
    from vlm_lens.report.explain import best_table, layer_table, render_explanations
    from vlm_lens.report.explain_words import headline, sentences

    step("writing the report")
    html = render_explanations(found, model_name=model_name, command=folder.command)
    said = [f"{headline(found)}.", *sentences(found), *noted(found.notes)]
    if len(found):
        said += ["", layer_table(found), "", best_table(found)]
    publish(folder, html, said=said, step=step)

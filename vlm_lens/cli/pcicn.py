"""``vlm-lens pcicn``: how few neurons a model collapses without, by noise on its input."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.controls import Table, make_tables
from vlm_lens.cli.folder import RunFolder
from vlm_lens.cli.progress import Steps
from vlm_lens.cli.samples import (
    add_data,
    add_model,
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
    from vlm_lens.analyses.comparison import Comparison
    from vlm_lens.analyses.critical import CriticalNeurons
    from vlm_lens.analyses.entry_scores import EntryScores
    from vlm_lens.data import Sample
    from vlm_lens.model import HookedVLM
    from vlm_lens.neurons import NeuronSet

_MOST = 1000
"""The authors' code stops after so many entries of the list; here these are distinct channels."""


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the command to the parser."""
    what = "find the fewest neurons that a model collapses without (PCICN)"
    how = "They are ranked by how far noise on the input of one prompt moves them"
    parser = commands.add_parser("pcicn", help=what, description=f"F{what[1:]}. {how}.")
    parser.set_defaults(run=run)
    add_model(parser)
    group = add_data(
        parser, text="TEXT", what="the text, or a file that it is a passage of; in place of --data"
    )
    which = "which of the samples or passages, from 0 (default: %(default)s)"
    group.add_argument("--sample", type=int, default=0, metavar="N", help=which)
    _add_noise(parser)
    controls = "search for random neurons too, without the first token, and in a higher precision"
    add_search(parser, max_k=_MOST, controls=controls, out="pcicn")


def _add_noise(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("noise").add_argument
    scale = "its standard deviation, in the units of the embeddings (default: %(default)s)"
    add("--alpha", type=finite, default=5.0, metavar="X", help=scale)
    copies = "number of noisy copies (default: %(default)s)"
    add("--n-noisy", type=int, default=100, metavar="N", help=copies)
    where = "which positions get noise (default: %(default)s)"
    add("--noise-on", choices=("all", "text", "image"), default="all", help=where)
    add("--seed", type=int, default=42, metavar="N", help="of the noise (default: %(default)s)")
    epsilon = "collapse: perplexity is up by this power of ten (default: %(default)s)"
    add("--epsilon", type=finite, default=1.0, metavar="X", help=epsilon)
    size = "noisy copies that run at once (default: %(default)s)"
    add("--batch-size", type=int, default=10, metavar="N", help=size)


def run(arguments: argparse.Namespace, *, command: str) -> None:
    """Everything that can be refused is refused before the model is loaded, or right after it."""
    step = Steps()
    folder, sample = _checked(arguments, command)
    is_text = arguments.text is not None
    step(f"loading {arguments.model}")
    model = load_model(arguments)
    check_prompt(model, sample, target=target_of(arguments))
    _check_noise(model, sample.text if is_text else sample, arguments)
    folder.claim(**checksums(model, [sample]))
    step(f"scoring by {arguments.n_noisy} noisy copies of the prompt")
    entries = _entries(folder, model, sample.text if is_text else sample, arguments)
    step("searching for the fewest that the model collapses without")
    options = search_options(arguments)
    find = partial(_find, model, sample, entries, epsilon=arguments.epsilon, **options)
    found = search(folder, model, find)
    tables = {}
    if arguments.controls:
        tables = _tables(model, sample, entries, arguments, options)
    write_down(
        folder,
        found,
        best=entries.to_dataframe(BEST_SHOWN),
        comparisons=make_tables(folder, tables, shared=set(tables), step=step),
        model_name=arguments.model,
        step=step,
    )


def _checked(arguments: argparse.Namespace, command: str) -> tuple[RunFolder, Sample]:
    """The folder and the sample, as far as they can be checked without the model."""
    check_text_alone(arguments)
    check_least(arguments, n_noisy=1, sample=0, words=1)
    for name in ("alpha", "epsilon"):
        if not 0 < getattr(arguments, name) < float("inf"):
            raise InputError(f"expected --{name} above 0, got {getattr(arguments, name)}")
    folder = RunFolder.of(arguments, command)
    sample = _sample(arguments)
    check_search(arguments, [sample])
    return folder, sample


def _sample(arguments: argparse.Namespace) -> Sample:
    """The one that is asked for."""
    from vlm_lens.data import Sample

    if arguments.text is not None and not _is_file(arguments.text):
        if arguments.sample or arguments.words is not None:
            raise InputError("--sample and --words are about a file, but --text is the text itself")
        return Sample(images=[], text=arguments.text)
    n = arguments.sample + 1
    if arguments.text is None:
        samples = read_samples(arguments, n=n, seed=0)
    else:
        samples = read_passages(arguments, n=n)
    if len(samples) < n:
        raise InputError(f"there is no sample {arguments.sample}, but only {len(samples)}, from 0")
    return samples[-1]


def _is_file(text: str) -> bool:
    """Whether a text is the name of a file; a single word is taken for one, as a rule misspelt."""
    return len(text.split()) < 2 or Path(text).expanduser().is_file()


def _check_noise(model: HookedVLM, prompt: Sample | str, arguments: argparse.Namespace) -> None:
    """Refuses what noise cannot be put on."""
    from vlm_lens.analyses.noisy_runs import noisy_positions, prompt_of
    from vlm_lens.parts import decoder_for

    with reading_input():
        decoder_for(model, "PCICN", instead="Try vlm-lens can.")
        noisy_positions(prompt_of(model, prompt), arguments.noise_on)


def _entries(
    folder: RunFolder, model: HookedVLM, prompt: Sample | str, arguments: argparse.Namespace
) -> EntryScores:
    from vlm_lens.analyses import pcicn
    from vlm_lens.analyses.entry_scores import EntryScores

    make = partial(
        pcicn.score,
        model,
        prompt,
        alpha=arguments.alpha,
        n_noisy=arguments.n_noisy,
        noise_on=arguments.noise_on,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    entries = folder.kept("", kind=EntryScores.KIND, load=EntryScores.load, make=make)
    if not len(entries):
        raise InputError("the noise moves no entry, so that there is none to mask")
    return entries


def _find(
    model: HookedVLM, sample: Sample, entries: EntryScores, **options: Any
) -> CriticalNeurons:
    """Searches; the result knows of the hook points too that none of the masked neurons is at."""
    from vlm_lens.analyses import pcicn
    from vlm_lens.neurons.places import matrices_of

    found = pcicn.find_critical(model, [sample], entries, **options)
    names = list(entries.sizes)
    return replace(found, sizes=entries.sizes, matrices=matrices_of(names, model.hook_dict))


def _tables(
    model: HookedVLM,
    sample: Sample,
    entries: EntryScores,
    arguments: argparse.Namespace,
    options: dict[str, Any],
) -> dict[str, Table]:
    """The searches of ``--controls``, judged as `pcicn.find_critical` judges."""
    from vlm_lens.analyses import pcicn
    from vlm_lens.analyses.critical_tables import against_artefacts
    from vlm_lens.masking import PERPLEXITY_RATIO, Criterion

    like_found = {
        **options,
        "collapse": (Criterion(PERPLEXITY_RATIO, at_least=10**arguments.epsilon),),
        "degraded": Criterion(PERPLEXITY_RATIO, at_least=pcicn.DEGRADED_RATIO),
        "method": entries.method,
    }
    given = (model, [sample], entries.neurons)
    controls = ("first token left alone", "higher precision")
    return {
        "against_random": partial(_against_random, *given, arguments.seeds, **like_found),
        "against_artefacts": partial(against_artefacts, *given, controls=controls, **like_found),
    }


def _against_random(
    model: HookedVLM,
    samples: Sequence[Sample],
    ranking: NeuronSet,
    seeds: Sequence[int],
    **options: Any,
) -> Comparison:
    """Against random neurons of the same hook points; `can.score` knows no heads to compare by."""
    from vlm_lens.analyses.comparison import Comparison
    from vlm_lens.analyses.searches import Searches
    from vlm_lens.neurons.controls import random_neurons

    searches = Searches(model, samples, options)
    searches.add(options["method"], ranking)
    for seed in seeds:
        drawn = random_neurons(searches.first.ranking, seed=seed, avoid="never")
        searches.add(f"random, seed {seed}", drawn, noted={"seed": seed})
    return Comparison("Against random neurons", searches.results)

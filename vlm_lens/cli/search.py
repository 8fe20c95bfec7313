"""What ``can`` and ``pcicn`` have in common: searching, and saying what was found."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vlm_lens.cli.checks import InputError, reading_input
from vlm_lens.cli.folder import RunFolder, add_out
from vlm_lens.cli.page import noted, publish
from vlm_lens.cli.progress import Steps, bar
from vlm_lens.cli.samples import add_seeds, check_least

if TYPE_CHECKING:
    import pandas as pd

    from vlm_lens.analyses.comparison import Comparison
    from vlm_lens.analyses.critical import CriticalNeurons
    from vlm_lens.data import Sample
    from vlm_lens.masking import Metric
    from vlm_lens.model import HookedVLM
    from vlm_lens.passes.batch import Target

BEST_SHOWN = 30
"""So many of the best-ranked neurons are on the page."""

_METRICS = ("accuracy", "similarity", "own_perplexity", "clean_perplexity")


def add_search(parser: argparse.ArgumentParser, *, max_k: int, controls: str, out: str) -> None:
    """Adds the options of the search.

    Args:
        parser: Where to.
        max_k: The default of ``--max-k``.
        controls: What ``--controls`` adds.
        out: The default of ``--out``.
    """
    group = parser.add_argument_group("search")
    add = group.add_argument
    most = "largest number of neurons that is masked (default: %(default)s)"
    add("--max-k", type=int, default=max_k, metavar="N", help=most)
    fill = "what masked neurons are set to (default: %(default)s)"
    add("--fill", choices=("zero", "mean"), default="zero", help=fill)
    further = f"what else to measure at every k: {', '.join(_METRICS)}"
    add("--metrics", nargs="+", choices=_METRICS, default=[], metavar="NAME", help=further)
    add("--exhaustive", action="store_true", help="try 1, 2, 3, ...: slow, sure of the smallest k")
    add("--controls", action="store_true", help=controls)
    add_seeds(group)
    add_out(parser, group, default=out)


def check_search(arguments: argparse.Namespace, samples: Sequence[Sample]) -> None:
    """Refuses what would be refused once the model is loaded.

    Raises:
        InputError: A number is out of range, or an answer is missing.
    """
    from vlm_lens.passes.batch import check_samples

    check_least(arguments, max_k=1, batch_size=1, max_new_tokens=1)
    if "accuracy" in arguments.metrics and not any(sample.answer for sample in samples):
        raise InputError("--metrics accuracy needs samples with answers")
    with reading_input():
        check_samples(
            samples,
            target=target_of(arguments),
            batch_size=arguments.batch_size,
            max_new_tokens=arguments.max_new_tokens,
        )


def target_of(arguments: argparse.Namespace) -> Target:
    """What is scored: texts themselves, or answers."""
    return "text" if arguments.text is not None else arguments.target or "own"


def search_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `can.find_critical` and `pcicn.find_critical` are told."""
    return {
        "target": target_of(arguments),
        "max_new_tokens": arguments.max_new_tokens,
        "max_k": arguments.max_k,
        "fill": arguments.fill,
        "metrics": _metrics(arguments.metrics),
        "exhaustive": arguments.exhaustive,
    }


def _metrics(names: Sequence[str]) -> list[Metric]:
    from vlm_lens import masking

    known = {"similarity": masking.similarity()}
    return [known[name] if name in known else getattr(masking, name.upper()) for name in names]


def check_prompt(model: HookedVLM, sample: Sample, *, target: Target) -> None:
    """Refuses a sample that the model cannot take, before work starts.

    Raises:
        InputError: It cannot, such as one without an image where every prompt has to have one.
    """
    from vlm_lens.passes.batch import make_batches

    try:
        make_batches(model, [sample], target=target, max_new_tokens=1)
    except (TypeError, ValueError) as error:
        raise InputError(f"the model cannot take the first sample: {error}") from error


def search(
    folder: RunFolder, model: HookedVLM, find: Callable[..., CriticalNeurons]
) -> CriticalNeurons:
    """Searches, or reads what an earlier run has found.

    Args:
        folder: Where results are kept.
        model: The model.
        find: `can.find_critical` or `pcicn.find_critical`, with all but where to keep what is done
            and whom to tell.
    """
    from vlm_lens.analyses.critical import CriticalNeurons

    with bar("searching", "sets") as shown:

        def make() -> CriticalNeurons:
            found = find(checkpoint=folder.checkpoint, on_measure=shown.measured)
            return replace(found, notes=(*found.notes, *_remarks(model, found)))

        return folder.kept("", kind=CriticalNeurons.KIND, load=CriticalNeurons.load, make=make)


def _remarks(model: HookedVLM, found: CriticalNeurons) -> list[str]:
    """What is odd about a result with this model."""
    clean, size = found.curve[0].metrics.get("perplexity", 0.0), model.cfg.d_vocab
    if not clean > size:
        return []
    return [
        f"the clean model's perplexity is {clean:,.4g}, worse than guessing among its {size:,} "
        "tokens: it does not model these texts, so that their perplexity says little about it"
    ]


def write_down(
    folder: RunFolder,
    found: CriticalNeurons,
    *,
    best: pd.DataFrame,
    comparisons: Sequence[Comparison],
    model_name: str,
    step: Steps,
) -> None:
    """Writes the page, and prints what was found and where that is.

    Args:
        folder: Where to.
        found: What was found.
        best: The best-ranked neurons.
        comparisons: Other searches beside it.
        model_name: What the model was loaded as.
        step: Says what comes next.
    """
    from vlm_lens.pages.tables import of_frame
    from vlm_lens.report.collapse import render_critical
    from vlm_lens.report.measured import stages
    from vlm_lens.report.words import headline, sentences

    step("writing the report")
    html = render_critical(
        found,
        best=best,
        comparisons=comparisons,
        model_name=model_name,
        command=folder.command,
    )
    said = [f"{headline(found)}.", *sentences(found), *noted(found.notes), "", stages(found)]
    for comparison in comparisons:
        said += ["", comparison.title, of_frame(comparison.table()), *noted(comparison.notes)]
    publish(folder, html, said=said, step=step)

"""Finding the smallest prefix of a ranking whose masking makes a model collapse.

What CAN and PCICN have in common: they rank neurons once, then mask one more at a time until the
model is beyond a threshold. Here few of these sets are measured, by galloping and bisecting, and
the result is checked by plain runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from vlm_lens.analyses.collapse_search import Meter, Search, SearchOptions, fingerprint
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.data import Sample
from vlm_lens.keywords import keywords_of, refuse_unknown
from vlm_lens.masking.means import mean_activations
from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.masking.metrics import AGREEMENT, PERPLEXITY, Criterion
from vlm_lens.masking.row_masks import Fill
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.places import matrices_of
from vlm_lens.passes.batch import Batch, Target, make_batches
from vlm_lens.results import provenance
from vlm_lens.results.scores import Scores

MOST = 5000
"""The largest set that is tried by default; ours. (CAN reports up to a few thousand neurons.)"""

_CHECKED_BEHIND = 2


def check_options(options: Iterable[str]) -> None:
    """Refuse options that no search for critical neurons has, before anything is computed.

    Raises:
        TypeError: There is no such option; the message lists the nearest.

    Example:
        >>> check_options(["row"])
        Traceback (most recent call last):
        TypeError: find_critical() got an unexpected keyword 'row'. Nearest: rows, probes.
    """
    known = {*keywords_of(find_critical), *keywords_of(SearchOptions)}
    refuse_unknown("find_critical", options, known)


def find_critical(
    model: HookedVLM,
    samples: Sequence[Sample],
    ranking: Scores | NeuronSet,
    *,
    method: str | None = None,
    target: Target = "own",
    batch_size: int = 16,
    max_new_tokens: int = 20,
    max_k: int | None = None,
    fill: Literal["zero", "mean"] | Fill = "zero",
    parameters: dict[str, Any] | None = None,
    **options: Any,
) -> CriticalNeurons:
    """Masks more and more of the best-ranked neurons until the model collapses.

    Args:
        model: The model.
        samples: What it is measured on.
        ranking: Scores, or neurons best first whose hook points' sizes are known.
        method: What the ranking comes from; by default what the scores say.
        target: Which answers perplexity and agreement are of: the clean model's "own", so that no
            annotation is needed, or each sample's "answer".
        batch_size: How many samples run at once.
        max_new_tokens: At most so many tokens of an answer.
        max_k: The largest set that is tried, if so many are ranked; by default all neurons with a
            positive score, at most 5,000.
        fill: What masked neurons are set to: "zero", their "mean" over the samples, or a value for
            each neuron by hook name.
        parameters: What else to note in the result.
        **options: See `SearchOptions`.

    Returns:
        The critical neurons, with every measurement that was made.

    Raises:
        ValueError: Nothing is ranked, `max_k` is less than 1, or there are no samples.
        TypeError: There is no such option.
    """
    check_options(options)
    settings = SearchOptions(max_new_tokens=max_new_tokens, **options)
    chosen = best(ranking, max_k=max_k)
    if not len(chosen):
        raise ValueError(
            "expected neurons to mask, but nothing is ranked: no score is above 0, or the ranking "
            "is empty. Score samples that reach these hook points"
        )
    batches = make_batches(
        model, samples, target=target, batch_size=batch_size, max_new_tokens=max_new_tokens
    )
    if fill == "mean":
        values: Fill | None = mean_activations(model, batches, chosen.names)
    else:
        values = None if fill == "zero" else fill
    scored = ranking if isinstance(ranking, Scores) else None
    noted = {} if scored is None else {"score": scored.parameters}
    found = find_collapse(
        model,
        batches,
        chosen,
        method=method or ("given" if scored is None else scored.method),
        options=replace(settings, fill=values),
        parameters={
            **noted,
            **(parameters or {}),
            "fill": fill if isinstance(fill, str) else "values",
            "target": target,
            "batch_size": batch_size,
            "n_samples": len(samples),
        },
    )
    sizes = {} if scored is None else {name: len(values) for name, values in scored.items()}
    names = list(sizes) or chosen.names
    return replace(found, sizes=sizes, matrices=matrices_of(names, model.hook_dict))


def best(ranking: Scores | NeuronSet, *, max_k: int | None) -> NeuronSet:
    """The neurons to mask, best first: at most `max_k`, by default 5,000."""
    if max_k is not None and max_k < 1:
        raise ValueError(f"expected max_k of at least 1, got {max_k}")
    if isinstance(ranking, Scores):
        ranking = ranking.ranking(max_k or MOST)
    return ranking[: max_k or MOST]


def find_collapse(
    model: Any,
    batches: Sequence[Batch],
    ranking: NeuronSet,
    *,
    method: str,
    options: SearchOptions | None = None,
    parameters: dict[str, Any] | None = None,
) -> CriticalNeurons:
    """Finds the smallest k such that the model collapses without the best k of a ranking.

    Args:
        model: A `HookedVLM`, or TransformerLens' `TransformerBridge` around the same model.
        batches: What it is measured on; see `vlm_lens.masking.make_batches`.
        ranking: Neurons, best first, whose hook points' sizes are known.
        method: What the ranking comes from, for titles and tables.
        options: How to search.
        parameters: What else to note in the result.

    Returns:
        The critical neurons, with every measurement that was made.

    Raises:
        ValueError: The ranking is empty or `max_k` is out of range.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.passes.batch import make_batches
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> batches = make_batches(model, load_samples("shapes-llava", n=8))
        >>> channels = {"blocks.5.hook_mlp_out": range(128)}
        >>> ranking = NeuronSet.from_indices(channels, sizes={"blocks.5.hook_mlp_out": 128})
        >>> found = find_collapse(model, batches, ranking, method="in order")
        >>> found.k is None or 1 <= found.k <= 128
        True
    """
    options = options or SearchOptions()
    target = (parameters or {}).get("target")
    n = len(ranking) if options.max_k is None else options.max_k
    if not 1 <= n <= len(ranking):
        raise ValueError(
            f"expected max_k of 1 to {len(ranking)}, the number of ranked neurons, got {n}: rank "
            "more neurons, or lower max_k"
        )
    ranking = ranking[:n]
    meter = Meter(model, batches, ranking, options, reuse=options.reuse, rows=options.rows)
    search = Search(meter, options, fingerprint(model, batches, ranking, options))
    search.at(0)
    for extra in options.also_at:
        search.at(min(extra, n))
    k, onset = _stages(search, options.degraded, n=n)
    notes = []
    if k is not None:
        plain = Meter(model, batches, ranking, options, reuse=False, rows=1)
        notes = _checked(search, plain, k, n=n)
    for shown in (onset, k):
        if shown is not None:
            search.show_answers(shown)
    samples = [sample for batch in batches for sample in batch.samples]
    return CriticalNeurons(
        method=method,
        k=k,
        ranking=ranking,
        curve=search.curve,
        stages=Stages(
            onset=onset,
            collapse=k,
            rule=_rule(options),
            degraded_before=_is_degraded(options.degraded, search.at(0)),
        ),
        is_monotone=not _strange(search.curve, k),
        prompts=tuple(sample.text for sample in samples),
        references=tuple(sample.answer for sample in samples),
        parameters={
            **options.as_parameters(),
            **(parameters or {}),
            "max_k": n,
            **provenance(model),
        },
        notes=(*notes, *_peculiarities(search.curve, k, options.degraded, n=n, target=target)),
        matrices=matrices_of(ranking.names, model.hook_dict),
    )


def _stages(search: Search, degraded: Criterion, *, n: int) -> tuple[int | None, int | None]:
    """The smallest k that collapses, and the smallest that is degraded.

    There is none where the clean model counts as that already: it is no neuron's doing.
    """
    clean, is_degraded = search.at(0), partial(_is_degraded, degraded)
    collapses = not _is_collapsed(clean)
    if not collapses or is_degraded(clean):
        search.at(n)  # to show what masking does
    while True:
        k = _smallest(search, _is_collapsed, n=n) if collapses else None
        onset = None
        if not is_degraded(clean):
            onset = _smallest(search, is_degraded, n=n if k is None else k)
        if not collapses or k == _smallest(search, _is_collapsed, n=n):
            return k, onset


def _smallest(search: Search, test: Callable[[Measurement], bool], *, n: int) -> int | None:
    """The smallest k that passes, of all that are measured, for whatever reason they are."""
    k = search.first(test, n=n)
    while (passing := [m.k for m in search.curve if 0 < m.k <= n and test(m)]) != []:
        if k == min(passing):
            break
        k = search.first(test, n=min(passing))
    return k


def _is_collapsed(measurement: Measurement) -> bool:
    return bool(measurement.collapsed)


def _is_degraded(degraded: Criterion, measurement: Measurement) -> bool:
    return degraded.is_met(measurement.metrics[degraded.metric.name])


def _of_the_clean(clean: Measurement, degraded: Criterion, target: Target | None) -> list[str]:
    """What is wrong before anything is masked."""
    notes, name = [], degraded.metric.name
    agreement = clean.metrics[AGREEMENT.name]
    if target == "answer" and agreement < 1:
        notes.append(
            f"with nothing masked the model gives {agreement:.4g} of the answers of the data word "
            "for word: what is lost of the others does not show in agreement"
        )
    if clean.collapsed:
        notes.append(
            "the clean model meets the criteria of collapse already: there is no k* to find"
        )
    if _is_degraded(degraded, clean):
        notes.append(
            f"with nothing masked {name} is {clean.metrics[name]:.4g}, which counts as degraded "
            f"({degraded}): no k is where that begins"
        )
    return notes


def _rule(options: SearchOptions) -> str:
    collapse = " and ".join(map(str, options.collapse))
    return (
        f"Degradation begins at the smallest k found with {options.degraded}; collapse is complete "
        f"at the smallest k found with {collapse}."
    )


def _checked(search: Search, meter: Meter, k: int, *, n: int) -> list[str]:
    """Measures the k behind, and k - 1 and k again by plain runs, one at a time."""
    for near in range(k + 1, min(n, k + _CHECKED_BEHIND) + 1):
        search.at(near)
    notes = []
    for run in meter.run([k - 1]) + meter.run([k]):
        collapsed = meter.judged(run).collapsed
        if collapsed != search.at(run.k).collapsed:
            does = "collapses" if collapsed else "does not collapse"
            notes.append(
                f"k = {run.k} {does} in a plain run, unlike in the batched one: it is within "
                "rounding of a threshold"
            )
    return notes


def _strange(curve: Sequence[Measurement], k: int | None) -> list[int]:
    """Each k on the wrong side of a threshold."""
    return [] if k is None else [m.k for m in curve if m.k > 0 and m.collapsed != (m.k >= k)]


def _peculiarities(
    curve: Sequence[Measurement],
    k: int | None,
    degraded: Criterion,
    *,
    n: int,
    target: Target | None,
) -> list[str]:
    """What a reader must know about the curve."""
    notes = _of_the_clean(curve[0], degraded, target)
    if k is None and not curve[0].collapsed:
        notes.append(f"no collapse within {n} neurons")
    if strange := _strange(curve, k):
        notes.append(
            f"not monotone: k = {k} is the smallest found, but k = "
            f"{', '.join(map(str, strange))} is on the other side of a threshold: "
            "only exhaustive=True is sure to find the smallest"
        )
    broken = [m.k for m in curve if not math.isfinite(m.metrics[PERPLEXITY.name])]
    if broken:
        ks = ", ".join(map(str, broken))
        notes.append(f"the perplexity is not finite, which counts as collapse, at k = {ks}")
    return notes

"""The tables that papers on critical neurons show, and the controls that they lack; one call each.

Each call searches several times and returns a `Comparison`. Where a set of neurons is special,
random ones of the same places are not; where a collapse is real, it does not go away with another
kind of masking, without the first token, or in a higher precision.

Rankings are scores, such as `can.score` returns, or neurons best first with known sizes: PCICN's
are ``scores.neurons``, together with the options that `pcicn.find_critical` sets (``target="text"``
and ``collapse=(Criterion(PERPLEXITY_RATIO, at_least=10.0),)``). `can.score` knows no heads: where
queries, keys or values are ranked, leave out the baselines and controls that it scores.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch

from vlm_lens.analyses import can
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.analyses.searches import Ranking, Searches, names_of
from vlm_lens.data import Sample
from vlm_lens.data.sample import check_are_samples
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.controls import NEAREST, norm_matched, norm_notes, random_neurons
from vlm_lens.neurons.neuron import split_name
from vlm_lens.neurons.sites import matrix_of
from vlm_lens.results.scores import Scores

Score = Callable[[HookedVLM, Sequence[Sample]], Ranking]

Baseline = Literal["activation only", "gradient only", "random"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
"""What `against_baselines` tries."""

Control = Literal[
    "mean ablation",
    "first token left alone",
    "higher precision",
    "same norm",
    "half of the samples",
]
CONTROLS: tuple[Control, ...] = get_args(Control)
"""What `against_artefacts` tries."""

_TEXT = ("language_model", "encoder", "decoder")
_HIGHER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float64,
}
_ACTIVATION = {"alpha": 0.0, "activation_power": 1.0}
_INGREDIENTS = {
    "activation only": _ACTIVATION,
    "gradient only": {"alpha": 1.0, "activation_power": 0.0},
}
_ANSWERS = ("target", "batch_size", "max_new_tokens")
_SCORING = (*_ANSWERS, "alpha", "activation_power", "tokens", "first_token")


# By place and by category -------------------------------------------------------------------------


def by_component(
    model: HookedVLM, samples: Sequence[Sample], ranking: Ranking, **options: Any
) -> Comparison:
    """k* when only neurons of one component are masked: encoder, projector, language model.

    Args:
        model: The model.
        samples: What it is measured on.
        ranking: Of neurons of several components.
        **options: Of `can.find_critical`; each search keeps its checkpoint in a folder inside.

    Returns:
        All components together first (if there are several), the language model, and the others.

    Raises:
        ValueError: Nothing is ranked, or as for `can.find_critical`.

    Warns:
        UserWarning: No neuron of a component has a score, which is left out.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=4)
        >>> list(by_component(model, samples, can.score(model, samples), max_k=4))
        ['all components', 'language_model', 'projector', 'vision_encoder']
    """
    names = {name: split_name(name)[0] for name in names_of(ranking)}
    parts = sorted(set(names.values()), key=lambda part: (part not in _TEXT, part))
    searches = Searches(model, samples, options)
    if len(parts) != 1:
        searches.add("all components", ranking)
    for part in parts:
        searches.add(part, ranking, names=[name for name in names if names[name] == part])
    return Comparison("k* by component", searches.results)


def by_matrix(
    model: HookedVLM,
    samples: Sequence[Sample],
    ranking: Ranking,
    *,
    component: str = "language_model",
    **options: Any,
) -> Comparison:
    """k* when only output channels of one kind of matrix are masked: gate, up, down.

    Args:
        model: The model.
        samples: What it is measured on.
        ranking: Of the outputs of several matrices.
        component: Whose matrices.
        **options: Of `can.find_critical`; each search keeps its checkpoint in a folder inside.

    Returns:
        All matrices of the component together first (if there are several), and each.

    Raises:
        ValueError: The ranking has no neurons of the component, or as for `can.find_critical`.

    Warns:
        UserWarning: No neuron of a matrix has a score, which is left out.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=4)
        >>> list(by_matrix(model, samples, can.score(model, samples), max_k=4))
        ['all matrices', 'gate', 'up', 'down']
    """
    names = [name for name in names_of(ranking) if split_name(name)[0] == component]
    if not names:
        there = ", ".join(dict.fromkeys(split_name(name)[0] for name in names_of(ranking)))
        raise ValueError(
            f"expected a ranking of neurons of {component!r}, got one of {there or 'none'}"
        )
    order = {name: place for place, name in enumerate(model.hook_dict)}
    matrices: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: order.get(name, len(order))):
        matrices.setdefault(matrix_of(name, model.hook_dict), []).append(name)
    searches = Searches(model, samples, options)
    if len(matrices) > 1:
        searches.add("all matrices", ranking, names=names)
    for matrix, its_names in matrices.items():
        searches.add(matrix, ranking, names=its_names)
    return Comparison(f"k* by matrix of the {component}", searches.results)


def by_category(
    model: HookedVLM,
    samples: Sequence[Sample],
    *,
    score: Score | None = None,
    **options: Any,
) -> Comparison:
    """k* of each category of samples, ranked and measured on that category alone.

    Args:
        model: The model.
        samples: Samples with categories; those without are left out.
        score: Ranks the neurons on some samples, such as ``partial(can.score, alpha=1)``; by
            default `can.score`, with the same target, batch size and length of answers as the
            search.
        **options: Of `can.find_critical`; each search keeps its checkpoint in a folder inside.

    Returns:
        All categories together first (if there are several), and each. Rows of categories with
        different numbers of samples are not alike: fewer samples share fewer critical neurons.

    Raises:
        ValueError: No sample has a category, or as for `score` and `can.find_critical`.

    Warns:
        UserWarning: No neuron has a score on a category, which is left out.
    """
    check_are_samples(samples)
    categories: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.category is not None:
            categories.setdefault(sample.category, []).append(sample)
    if not categories:
        raise ValueError("expected samples with a category, got none: set Sample.category")
    every = [sample for sample in samples if sample.category is not None]
    searches = Searches(model, every, options)
    score = score or partial(can.score, **_answering(options))
    if len(categories) > 1:
        searches.add("all categories", score(model, every))
    for category, members in categories.items():
        searches.add(category, score(model, members), samples=members)
    return Comparison("k* by category of samples", searches.results)


# Against others -----------------------------------------------------------------------------------


def against_baselines(
    model: HookedVLM,
    samples: Sequence[Sample],
    ranking: Ranking,
    *,
    baselines: Collection[Baseline] = BASELINES,
    seeds: Sequence[int] = (0, 1, 2),
    **options: Any,
) -> Comparison:
    """A ranking against its ingredients alone, and against random neurons of the same places.

    "activation only" ranks by |a| and "gradient only" by |dL/da|, over the same hook points and
    otherwise with the settings of the scores that are compared. See `random_neurons` for what is
    random, and why a random ranking may hold critical neurons: "shared" says how many it does.

    Args:
        model: The model.
        samples: What it is measured on, and what the ingredients are computed from.
        ranking: The ranking.
        baselines: Which of these to try.
        seeds: Of the random rankings.
        **options: Of `can.find_critical`; each search keeps its checkpoint in a folder inside.

    Raises:
        ValueError: There is no such baseline, nothing is ranked, or as for `can.score` and
            `can.find_critical`.

    Warns:
        UserWarning: An ingredient is 0 for every neuron, and left out.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=4)
        >>> scores = can.score(model, samples, sites="blocks.*.hook_mlp_out")
        >>> list(against_baselines(model, samples, scores, seeds=[0], max_k=4))
        ['CAN', 'activation only', 'gradient only', 'random, seed 0']
    """
    _check_known("baselines", baselines, BASELINES)
    searches = Searches(model, samples, options)
    score = _scoring_like(ranking, options)
    ingredients = {
        label: score(model, samples, **exponents)
        for label, exponents in _INGREDIENTS.items()
        if label in baselines
    }
    searches.add(_label(ranking, options), ranking)
    for label, scores in ingredients.items():
        searches.add(label, scores)
    for seed in seeds if "random" in baselines else ():
        drawn = random_neurons(searches.first.ranking, seed=seed, avoid="never")
        searches.add(f"random, seed {seed}", drawn, noted={"seed": seed})
    return Comparison("Against other rankings", searches.results)


def against_artefacts(
    model: HookedVLM,
    samples: Sequence[Sample],
    ranking: Ranking,
    *,
    controls: Collection[Control] = CONTROLS,
    score: Score | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    **options: Any,
) -> Comparison:
    """A result against what could fake it.

    - mean ablation: neurons are set to their mean over the samples instead of zero;
    - first token left alone: an attention sink that is destroyed is no lost knowledge;
    - higher precision: float32 instead of half precision, float64 instead of float32;
    - same norm, for each seed: random neurons of the same hook points whose norm is as near as may
      be, because zeroing something large does harm wherever it is. The norm is the score of
      `can.score` with ``alpha=0``. A note says where no other neuron's is within a factor of two,
      and where there are no others than critical ones: for these, this is no control;
    - half of the samples, for each seed: ranked and measured anew.

    Args:
        model: The model. The higher precision needs memory for a copy beside it.
        samples: What it is measured on.
        ranking: The ranking.
        controls: Which of these to try.
        score: Ranks the neurons anew on half of the samples; by default `can.score` with the
            settings of the scores that are compared, if that is what they are.
        seeds: Of the random neurons and of the halves.
        **options: Of `can.find_critical`; each search keeps its checkpoint in a folder inside.

    Raises:
        ValueError: There is no such control, halves of the samples cannot be ranked without
            `score`, nothing is ranked, or as for `can.score` and `can.find_critical`.

    Warns:
        UserWarning: A control is left out: the model's precision is the highest already, or there
            are no other neurons to compare with.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=4)
        >>> scores = can.score(model, samples, sites="blocks.*.hook_mlp_out")
        >>> found = against_artefacts(model, samples, scores, seeds=[0], max_k=4)
        >>> [label for label in found if "seed" not in label]
        ['CAN', 'mean ablation', 'first token left alone', 'float64']
    """
    _check_known("controls", controls, CONTROLS)
    if score is None and "half of the samples" in controls and not _is_can(ranking):
        raise ValueError(
            "to rank neurons on half of the samples, say how: pass score, a function of a model "
            "and samples, or leave 'half of the samples' out of controls"
        )
    searches, like = Searches(model, samples, options), _scoring_like(ranking, options)
    norms = like(model, samples, **_ACTIVATION) if "same norm" in controls else None
    searches.add(_label(ranking, options), ranking)
    if "mean ablation" in controls:
        searches.add("mean ablation", ranking, fill="mean")
    if "first token left alone" in controls:
        searches.add("first token left alone", ranking, first_token=False)
    if "higher precision" in controls:
        _add_precision(searches, model, ranking)
    if norms is not None:
        for seed in seeds:
            _add_same_norm(searches, norms, seed)
    for seed in seeds if "half of the samples" in controls else ():
        half, label = _half(samples, seed=seed), f"half of the samples, seed {seed}"
        searches.add(label, (score or like)(model, half), samples=half, noted={"seed": seed})
    return Comparison("Against artefacts", searches.results)


def _check_known(what: str, asked: Collection[str], known: Sequence[str]) -> None:
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"expected {what} of {list(known)}, got {unknown[0]!r}")


def _add_precision(searches: Searches, model: HookedVLM, ranking: Ranking) -> None:
    higher = _HIGHER.get(model.cfg.dtype)
    if higher is None:
        warnings.warn(f"there is no precision above {model.cfg.dtype} to try", stacklevel=3)
        return
    label = str(higher).removeprefix("torch.")
    searches.add(label, ranking, model=copy.deepcopy(model).to(higher))


def _add_same_norm(searches: Searches, norms: Scores, seed: int) -> None:
    first = searches.first
    matched = norm_matched(first.ranking, norms, seed=seed, apart_from=first.neurons)
    searches.add(
        f"same norm, seed {seed}",
        matched,
        noted={"seed": seed, "nearest": NEAREST, "score": norms.parameters},
        notes=norm_notes(first.neurons, matched, norms),
    )


def _half(samples: Sequence[Sample], *, seed: int) -> list[Sample]:
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return [samples[i] for i in sorted(order[: max(1, len(samples) // 2)].tolist())]


# What a ranking says of itself --------------------------------------------------------------------


def _label(ranking: Ranking, options: dict[str, Any]) -> str:
    if options.get("method"):
        return options["method"]
    return "given" if isinstance(ranking, NeuronSet) else ranking.method


def _is_can(ranking: Ranking) -> bool:
    return isinstance(ranking, Scores) and ranking.method == "CAN"


def _scoring_like(ranking: Ranking, options: dict[str, Any]) -> Callable[..., Scores]:
    """`can.score` at the ranking's hook points, with its settings if that is what scored it."""
    settings = _answering(options)
    if isinstance(ranking, Scores) and _is_can(ranking):
        known = ranking.parameters
        settings |= {name: known[name] for name in _SCORING if name in known}
    return partial(can.score, sites=names_of(ranking), **settings)


def _answering(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a search that `can.score` has too."""
    return {name: options[name] for name in _ANSWERS if name in options}

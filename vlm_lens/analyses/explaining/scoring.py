"""Scores explanations by what can be predicted from them, and against those of other neurons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import false_discovery_control

from vlm_lens.analyses.chat import ReplyError
from vlm_lens.analyses.exemplars import Exemplar, Exemplars
from vlm_lens.analyses.explaining.explanation import Explanation, Simulator
from vlm_lens.analyses.explaining.measures import pearson, spearman


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well an explanation predicts a neuron's activations.

    Attributes:
        pearson: Correlation of predicted and true activations over all patches and tokens of the
            held-out samples, top and random ones; 0 where one of the two is constant.
        spearman: The same of their ranks.
        image: Pearson's correlation over the patches alone; None if there are none.
        text: Over the tokens alone.
        random: Over the random samples alone.
        positions: How many patches and tokens there are predictions of.
        notes: What a reader must know, e.g. that the predictions are constant.
    """

    pearson: float
    spearman: float
    image: float | None = None
    text: float | None = None
    random: float | None = None
    positions: int = 0
    notes: tuple[str, ...] = ()


def score(held_out: Exemplars) -> Score:
    """The score of predictions.

    Args:
        held_out: Exemplars with predictions; where one is NaN, nothing was predicted.

    Example:
        >>> from vlm_lens.analyses.exemplars import SampleView
        >>> from vlm_lens.data import Sample
        >>> from vlm_lens.neurons import Neuron
        >>> view = SampleView(0, Sample([], ""), ("text",) * 3, ("a", "b", "c"), ("prompt",) * 3,
        ...                   np.full(3, -1), np.full((3, 4), np.nan))
        >>> one = Exemplar(view, np.array([0.0, 10.0, 0.0]), predicted=np.array([1.0, 7.0, 1.0]))
        >>> score(Exemplars(Neuron("hook_embed", 3), (one,), (), 1.0)).pearson
        1.0
    """
    predicted = predictions(held_out)
    true, known = held_out.values, np.isfinite(predicted)
    n_top = sum(len(one.view) for one in held_out.top)
    is_random = np.arange(len(true)) >= n_top
    parts = {
        "image": held_out.is_kind("image"),
        "text": held_out.is_kind("text"),
        "random": is_random,
    }
    by_part = {name: _part(predicted, true, known & chosen) for name, chosen in parts.items()}
    predicted, true = predicted[known], true[known]
    linear, ranked = pearson(predicted, true), spearman(predicted, true)
    return Score(
        pearson=linear or 0.0,
        spearman=ranked or 0.0,
        positions=len(true),
        notes=() if linear is not None else (_why_none(predicted, true),),
        **by_part,
    )


def _part(
    predicted: Float[np.ndarray, " n"],
    true: Float[np.ndarray, " n"],
    chosen: Bool[np.ndarray, " n"],
) -> float | None:
    return (pearson(predicted[chosen], true[chosen]) or 0.0) if chosen.any() else None


def _why_none(predicted: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> str:
    if len(true) < 2:
        return "nothing was predicted, so the score is 0"
    what = "the prediction" if np.ptp(predicted) < np.ptp(true) else "the activation"
    return f"{what} is the same everywhere, so the score is 0"


def predictions(held_out: Exemplars) -> Float[np.ndarray, " n"]:
    """The predictions of all exemplars, one exemplar after the other; NaN where there is none."""
    found = [
        np.full(len(one.view), np.nan) if one.predicted is None else one.predicted
        for one in held_out.every
    ]
    return np.concatenate(found or [np.zeros(0)])


def simulated(held_out: Exemplars, explanation: Explanation, simulator: Simulator) -> Exemplars:
    """Exemplars with what a simulator predicts of them.

    Raises:
        ValueError: It does not return a number for each position.
    """
    one = partial(_with_prediction, simulator, explanation)
    return replace(
        held_out, top=tuple(map(one, held_out.top)), random=tuple(map(one, held_out.random))
    )


def _with_prediction(
    simulator: Simulator, explanation: Explanation, exemplar: Exemplar
) -> Exemplar:
    found = np.asarray(simulator(explanation, exemplar.view), dtype=np.float64)
    if found.shape != (len(exemplar.view),) or np.isinf(found).any():
        raise ValueError(
            f"expected the simulator to return {len(exemplar.view)} finite numbers (or NaN) "
            f"for {exemplar.view!r}, got shape {found.shape}"
        )
    return replace(exemplar, predicted=found)


# Against others -----------------------------------------------------------------------------------


def other_neurons(n: int, *, times: int, seed: int) -> Int[np.ndarray, "times neuron"]:
    """For each neuron others, each of them once, whose explanations it is scored with.

    Each row shifts one random order, so that it hands every explanation to one other neuron. There
    are at most ``n - 1`` rows, since a neuron has so many others.

    Example:
        >>> other_neurons(3, times=5, seed=0).tolist()
        [[2, 0, 1], [1, 2, 0]]
    """
    random = np.random.default_rng(seed)
    order = random.permutation(n)
    shifts = 1 + random.permutation(max(0, n - 1))[:times]
    rows = np.empty((len(shifts), n), dtype=np.int64)
    for row, shift in zip(rows, shifts, strict=True):
        row[order] = np.roll(order, -shift)
    return rows


def shuffled_scores(
    held_out: Sequence[Exemplars],
    explanations: Sequence[Explanation],
    simulator: Simulator,
    others: Int[np.ndarray, "times neuron"],
    *,
    on_neuron: Callable[[int, int], object] | None = None,
) -> Float[np.ndarray, "times neuron"]:
    """Each neuron's Pearson correlation with the explanations of others.

    Where a simulator's reply cannot be used it is NaN.
    """
    found = np.full(others.shape, np.nan)
    for i, exemplars in enumerate(held_out):
        true = exemplars.values
        for row, other in enumerate(others[:, i].tolist()):
            try:
                with_others = simulated(exemplars, explanations[other], simulator)
            except ReplyError:
                continue
            predicted = predictions(with_others)
            known = np.isfinite(predicted)
            found[row, i] = pearson(predicted[known], true[known]) or 0.0
        if on_neuron is not None:
            on_neuron(i + 1, len(held_out))
    return found


def p_values(
    own: Float[np.ndarray, " neuron"], shuffled: Float[np.ndarray, "times neuron"]
) -> Float[np.ndarray, " neuron"]:
    """How likely a score this high is with the explanation of another neuron.

    That is ``(1 + number of others that score as high) / (1 + number of others)``; 1 where there
    are no others.

    Example:
        >>> p_values(np.array([0.5]), np.array([[0.1], [0.6], [0.2]])).tolist()
        [0.5]
    """
    as_high = (shuffled >= own[None, :]).sum(0)  # NaN is not
    return (1 + as_high) / (1 + np.isfinite(shuffled).sum(0))


def p_of_mean(
    own: Float[np.ndarray, " neuron"], shuffled: Float[np.ndarray, "times neuron"]
) -> float:
    """How likely a mean score this high is where explanations are dealt out anew.

    Example:
        >>> p_of_mean(np.array([0.5, 0.7]), np.array([[0.1, 0.2]]))
        0.5
    """
    if not shuffled.size:
        return 1.0
    known = np.isfinite(shuffled)
    n_known = known.sum(1)
    filled = np.where(known, shuffled, 0.0)
    beaten = [filled[row].sum() / n >= own[known[row]].mean() for row, n in enumerate(n_known) if n]
    return float(1 + sum(beaten)) / (1 + len(beaten))


def better_than_chance(
    p: Float[np.ndarray, " neuron"], *, alpha: int | float
) -> Bool[np.ndarray, " n"]:
    """Which neurons are explained better than chance, the false discovery rate being `alpha`.

    By Benjamini and Hochberg (1995).

    Example:
        >>> better_than_chance(np.array([0.01, 0.04, 0.9]), alpha=0.05).tolist()
        [True, False, False]
    """
    return false_discovery_control(p) <= alpha if len(p) else np.zeros(0, dtype=bool)

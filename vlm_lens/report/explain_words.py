"""What explanations of neurons are worth, in sentences: made from their numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from vlm_lens.pages.words import listing

if TYPE_CHECKING:
    from vlm_lens.analyses.explanations import Explanations
    from vlm_lens.neurons import Neuron


def headline(found: Explanations) -> str:
    """How well neurons are explained, beside what is chance.

    Example:
        >>> from vlm_lens.analyses.explanations import Explanations
        >>> headline(Explanations((), np.zeros((0, 0))))
        'No neuron was explained'
    """
    if not len(found):
        return "No neuron was explained"
    neurons = "1 neuron" if len(found) == 1 else f"{len(found):,} neurons"
    chance = by_chance(found)
    beside = "" if chance is None else f", {_number(chance)} by chance"
    return f"{neurons} explained: mean score {_number(found.scores.mean())}{beside}"


def by_chance(found: Explanations) -> float | None:
    """The mean score with the explanations of other neurons; None if there is none."""
    known = found.shuffled[np.isfinite(found.shuffled)]
    return float(known.mean()) if known.size else None


def sentences(found: Explanations) -> list[str]:
    """What the score is, how many are better than chance, and over what that holds.

    Example:
        >>> from vlm_lens.analyses.explanations import Explanations
        >>> sentences(Explanations((), np.zeros((0, 0))))
        []
    """
    if not len(found):
        return []
    said = [
        "The score of a neuron is the correlation of predicted and true activations, over patches "
        "and tokens of samples that its explanation was not made from."
    ]
    if by_chance(found) is not None:
        said.append(
            f"{int(found.better.sum()):,} of {len(found):,} ({found.share_better:.0%}) are "
            "explained better than by the explanations of other neurons (false discovery rate "
            f"{found.alpha:g}); that the mean is as high by chance has p = {found.p_of_mean:.2g}."
        )
    return [*said, *_resolution(found), *_parts(found), *_skipped(found)]


def _resolution(found: Explanations) -> list[str]:
    """How many neurons must be at the smallest p-value for any to count as better than chance."""
    known = np.isfinite(found.shuffled).sum(0)
    if not known.any():
        return []
    smallest = 1 / (int(known.max()) + 1)
    needed = math.ceil(round(smallest * len(found) / found.alpha, 6))
    if needed <= 1:
        return []
    so_many = f"unless {needed:,} do" if needed <= len(found) else "as there are too few"
    return [
        f"With {int(known.max()):,} other explanations p is {smallest:.2g} at least, so that none "
        f"can count as better {so_many}."
    ]


def _parts(found: Explanations) -> list[str]:
    """Patches and tokens apart, where there are both."""
    told = []
    for place, kind in (("patches", "image"), ("tokens", "text")):
        known = [getattr(one.score, kind) for one in found.neurons]
        known = [value for value in known if value is not None]
        if known:
            told.append(f"{_number(np.mean(known))} over {place} alone")
    return [f"The mean score is {listing(told)}."] if len(told) > 1 else []


def _skipped(found: Explanations) -> list[str]:
    n = len(found.skipped)
    return [f"{n:,} more could not be explained."] if n else []


def against_others(found: Explanations, neuron: Neuron) -> str:
    """A neuron's score, beside that with the explanations of others."""
    place = list(found).index(neuron)
    said = (
        f"What {neuron} is said to react to predicts where it is active in samples that were held "
        f"out: the correlation is {_number(found.scores[place])}"
    )
    others = found.shuffled[:, place]
    others = others[np.isfinite(others)]
    if not len(others):
        return f"{said}."
    them = "that of another neuron" if len(others) == 1 else f"those of {len(others)} other neurons"
    return f"{said}, and {_number(others.mean())} with {them} in place of its explanation."


def on_average(found: Explanations) -> str:
    """The mean score of all, beside what is chance."""
    chance = by_chance(found)
    beside = "" if chance is None else f", and {_number(chance)} with the explanations of others"
    return f"The mean over all {len(found):,} is {_number(found.scores.mean())}{beside}."


def _number(value: float | np.floating) -> str:
    """A score with two digits, and a minus sign that is one."""
    return f"{value:.2f}".replace("-", "−")

"""How well concepts fit activations, and predictions do."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata


def intersection_over_union(
    masks: Bool[np.ndarray, "concept n"], active: Bool[np.ndarray, "threshold n"]
) -> Float[np.ndarray, "concept threshold"]:
    """``|mask & active| / |mask | active|`` of each concept at each threshold; 0 if both are empty.

    That of Network Dissection (Bau et al. 2017, arXiv 1704.05796), over patches or tokens instead
    of pixels.

    Example:
        >>> masks = np.array([[True, True, False, False]])
        >>> intersection_over_union(masks, np.array([[True, False, True, False]])).tolist()
        [[0.3333333333333333]]
    """
    both = masks.astype(np.float64) @ active.T.astype(np.float64)
    either = masks.sum(1)[:, None] + active.sum(1)[None, :] - both
    return both / np.maximum(either, 1)


def auroc(
    masks: Bool[np.ndarray, "concept n"], values: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " concept"]:
    """How often the activation is larger where a concept holds than where it does not.

    The area under the ROC curve of the activation as a detector of the concept; of equal
    activations half count. It is 0.5 where a concept holds everywhere or nowhere.

    Example:
        >>> auroc(np.array([[True, True, False]]), np.array([3.0, 1.0, 2.0])).tolist()
        [0.5]
    """
    ranks = rankdata(values)
    inside = masks.sum(1)
    outside = masks.shape[1] - inside
    above = masks.astype(np.float64) @ ranks - inside * (inside + 1) / 2
    pairs = inside * outside
    return np.where(pairs > 0, above / np.maximum(pairs, 1), 0.5)


def pearson(predicted: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> float | None:
    """Pearson's correlation; None where one of the two is constant, or there are fewer than two.

    Example:
        >>> pearson(np.array([0.0, 2.0]), np.array([7.0, 7.0])) is None
        True
    """
    if len(true) < 2 or _is_constant(predicted) or _is_constant(true):
        return None
    x, y = predicted - predicted.mean(), true - true.mean()
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    return float(np.clip(x @ y / lengths, -1.0, 1.0)) if lengths > 0 else None


def spearman(predicted: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> float | None:
    """Spearman's correlation: Pearson's of the ranks, equal values having their mean rank."""
    return pearson(rankdata(predicted), rankdata(true))


def _is_constant(values: Float[np.ndarray, " n"]) -> bool:
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))

"""Comparing: linear heads that say how the two objects of a question lie to each other.

"Yes" and "no" teach slowly what has to come before them: that the places of two objects are to be
compared at all. So in the training the last words of a question about a relation also say which of
the two is further left, and which further up. The heads are thrown away afterwards, as are those
that name objects (`shapes_llava/naming.py`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, rms_norm

from vlm_lens.shapes_llava.scenes import SceneObject


class Comparer(nn.Module):
    """One linear head for columns and one for rows.

    Args:
        width: width of the states that are to compare.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.heads = nn.ModuleList(nn.Linear(width, 3) for _ in ("columns", "rows"))

    def loss(
        self, states: Float[Tensor, "pos width"], labels: Int[Tensor, "pos 2"]
    ) -> Float[Tensor, ""]:
        """Mean over positions of the summed cross-entropies of both heads."""
        states = rms_norm(states, (self.width,))
        losses = [
            cross_entropy(head(states), wanted)
            for head, wanted in zip(self.heads, labels.unbind(1), strict=True)
        ]
        return torch.stack(losses).sum()


def compare(first: SceneObject, second: SceneObject) -> tuple[int, int]:
    """For columns and rows: 0 where the first object comes earlier, 1 level, 2 later.

    Example:
        >>> from random import Random
        >>> from vlm_lens.shapes_llava.scenes import sample_scene
        >>> first, *_, last = sample_scene(Random(0)).objects
        >>> compare(last, first)[1] >= 1, compare(first, first)
        (True, (1, 1))
    """
    columns, rows = first.column - second.column, first.row - second.row
    return _sign(columns) + 1, _sign(rows) + 1


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)

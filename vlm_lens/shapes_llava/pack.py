"""Packing: one sequence per scene, with several questions that cannot see each other.

A sequence is a prefix (the image, or the scene told in words) followed by segments, one per
question with its answer. A token attends to the prefix and to the tokens before it in its own
segment, and positions restart after the prefix for every segment. So the model computes for each
question what it would compute in a sequence of its own, while the prefix is computed only once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

PREFIX = 0
PADDING = -1


@dataclass(frozen=True)
class Packed:
    """A batch of packed sequences, padded on the right.

    Attributes:
        input_ids: token ids.
        position_ids: positions, restarting after the prefix for every segment.
        segments: 0 in the prefix, 1, 2, ... in the questions, -1 in the padding.
        targets: the answer token that is to be predicted at this token, or -100 where none is.
        weights: weight of each target: those of a question sum to the root of its answer's length,
            so that long answers count more than short ones, but do not drown them.
    """

    input_ids: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]
    segments: Int[Tensor, "batch pos"]
    targets: Int[Tensor, "batch pos"]
    weights: Float[Tensor, "batch pos"]

    @property
    def attention_mask(self) -> Bool[Tensor, "batch 1 pos pos"]:
        """True where the token of the third axis may attend to the token of the fourth."""
        query, key = self.segments[:, :, None], self.segments[:, None, :]
        causal = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).tril()
        return (causal & ((key == PREFIX) | (key == query)))[:, None]


PackedItem = tuple[Sequence[int], Sequence[tuple[Sequence[int], Sequence[int]]]]
"""A prefix and its (question, answer) pairs, all as token ids."""


def pack(items: Sequence[PackedItem]) -> Packed:
    """Packs every prefix with its questions into one sequence.

    Example:
        >>> packed = pack([([1, 5], [([6, 7], [8]), ([9], [8, 2])])])
        >>> packed.input_ids.tolist(), packed.position_ids.tolist()
        ([[1, 5, 6, 7, 8, 9, 8, 2]], [[0, 1, 2, 3, 4, 2, 3, 4]])
        >>> packed.targets.tolist()
        [[-100, -100, -100, 8, -100, 8, 2, -100]]
    """
    longest = max(len(p) + sum(len(q) + len(a) for q, a in pairs) for p, pairs in items)
    fields = np.zeros((4, len(items), longest), dtype=np.int64)
    fields[2], fields[3] = PADDING, -100
    weights = np.zeros((len(items), longest), dtype=np.float32)
    for row, (prefix, pairs) in enumerate(items):
        fields[0, row, : len(prefix)] = prefix
        fields[1, row, : len(prefix)] = np.arange(len(prefix))
        fields[2, row, : len(prefix)] = PREFIX
        start = len(prefix)
        for segment, (question, answer) in enumerate(pairs, start=1):
            end = start + len(question) + len(answer)
            positions = np.arange(end - start) + len(prefix)
            fields[0, row, start:end] = (*question, *answer)
            fields[1, row, start:end] = positions
            fields[2, row, start:end] = segment
            fields[3, row, end - len(answer) - 1 : end - 1] = answer
            weights[row, end - len(answer) - 1 : end - 1] = len(answer) ** -0.5
            start = end
    input_ids, position_ids, segments, targets = torch.from_numpy(fields)
    return Packed(input_ids, position_ids, segments, targets, torch.from_numpy(weights))


def packed_loss(logits: Float[Tensor, "batch pos vocab"], packed: Packed) -> Float[Tensor, ""]:
    """Weighted mean of the cross-entropy over the answer tokens of all questions."""
    return answer_loss(logits[packed.targets >= 0], packed)


def answer_loss(logits: Float[Tensor, "answer vocab"], packed: Packed) -> Float[Tensor, ""]:
    """The same, of logits that were computed only where an answer's token is predicted."""
    chosen = packed.targets >= 0
    losses = cross_entropy(logits, packed.targets[chosen], reduction="none")
    weights = packed.weights[chosen]
    return (losses * weights).sum() / weights.sum()

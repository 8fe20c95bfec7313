"""A place for queries: the encoder's patches, as far as a query attends to them.

What a query of a Q-Former shows has no place in the image, and neither has the language model's
position that it becomes. So each hands its value to the patches in proportion to its attention, as
`TokenMap.through` does. The page computes that for one neuron after the other: it is told once how
much each query attends to each patch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.explorer.spaces import Kind, Space, described, entries_of
from vlm_lens.inputs.token_map import TokenMap
from vlm_lens.model import HookedVLM

PATTERNS = ("qformer.blocks.*.cross_attn.hook_pattern", "projector.attn.hook_pattern")
"""Where queries attend to patches: in a Q-Former, and in the projector of Kosmos-2.

That the mean over all heads of all of these is taken is a choice of ours: a query's stream adds up
what every block that attends to the image reads. A neuron in the middle of a Q-Former is thereby
also placed by blocks behind it.
"""

MAX_WEIGHTS = 500_000
"""More weights, patches times queries, would make the page large and slow: they are left out."""

_WITH_QUERIES: tuple[Kind, ...] = ("tokens", "queries", "queries and text")


@dataclass(frozen=True, eq=False)
class Spread:
    """How much the queries of each image attend to its patches.

    Attributes:
        patches: The patches of all images.
        weights: For each patch, how much each query of its image attends to it.
        n_heads: The weights are means over so many heads of each block ...
        n_blocks: ... and over so many blocks.

    Example:
        >>> from vlm_lens.explorer.spaces import Entry
        >>> patches = Space("patches", "patches", (Entry(0, "patch", "image", image=0),) * 2)
        >>> spread = Spread(patches, np.array([[0.5, 0.1], [0.5, 0.9]]), n_heads=12, n_blocks=1)
        >>> spread.n_queries, spread.label
        (2, 'mean of 12 heads')
        >>> queries = Space("queries", "queries", (Entry(0, "query", "image", image=0),) * 2)
        >>> spread.queries_of(queries)
        [0, 1]
    """

    patches: Space
    weights: Float[np.ndarray, "patch query"]
    n_heads: int
    n_blocks: int

    @property
    def n_queries(self) -> int:
        """How many queries an image has."""
        return self.weights.shape[1]

    @property
    def label(self) -> str:
        """What the weights are."""
        blocks = f" of {self.n_blocks} blocks" if self.n_blocks > 1 else ""
        return f"mean of {self.n_heads} heads{blocks}"

    @property
    def shown(self) -> Float[np.ndarray, "shown query"]:
        """The weights of the patches that are drawn, float32."""
        return self.weights[self.patches.shown].astype(np.float32)

    @property
    def note(self) -> str:
        """Why nothing is spread, or nothing."""
        n_patches = len(self.patches.shown)
        if n_patches * self.n_queries <= MAX_WEIGHTS:
            return ""
        return (
            f"The attention of {self.n_queries:,} queries to {n_patches:,} patches, which would "
            "give them a place, is too much for this page."
        )

    def described(self) -> dict[str, Any]:
        """The patches as the page is told of them; or only why they are left out."""
        if self.note:
            return {"note": self.note}
        return {**described(self.patches), "queries": self.n_queries, "label": self.label}

    def queries_of(self, space: Space) -> list[int] | None:
        """Which query of its image each entry that is drawn is, -1 for none.

        Returns:
            None if the space has no queries, or not all that an image has are drawn.
        """
        if space.kind not in _WITH_QUERIES or self.note:
            return None
        numbers, seen = [], dict.fromkeys({entry.image for entry in self.patches.entries}, 0)
        for entry in (space.entries[i] for i in space.shown.tolist()):
            is_query = entry.modality == "image" and entry.image in seen
            numbers.append(seen[entry.image] if is_query else -1)
            if is_query:
                seen[entry.image] += 1
        return numbers if set(seen.values()) == {self.n_queries} else None


def pattern_names(model: HookedVLM, token_map: TokenMap) -> list[str]:
    """The hook points where queries attend to patches; none if the positions are no queries."""
    layouts = token_map.layouts
    if not layouts or any(set(layout.tokens) != {"query"} for layout in layouts):
        return []
    is_pattern = (any(fnmatchcase(name, glob) for glob in PATTERNS) for name in model.hook_dict)
    return [name for name, chosen in zip(model.hook_dict, is_pattern, strict=True) if chosen]


def spread_of(patterns: Mapping[str, Tensor], token_map: TokenMap) -> Spread | None:
    """How the queries' values are spread.

    Args:
        patterns: The attention at each of `pattern_names`, of shape [image, head, query, key];
            keys behind the encoder's patches are the queries themselves.
        token_map: The sample.

    Returns:
        None if there is no such attention.
    """
    if not patterns:
        return None
    each = list(patterns.values())
    mean = torch.stack([pattern.float().mean(1).cpu() for pattern in each]).mean(0).numpy()
    found = entries_of("patches without class", token_map)
    assert found is not None  # where there are queries there are patches
    entries = tuple(found.entries)
    weights = _by_patch(mean, token_map)
    patches = Space("patches without class", "patches", entries)
    return Spread(patches, weights, n_heads=each[0].shape[1], n_blocks=len(each))


def _by_patch(
    mean: Float[np.ndarray, "image query key"], token_map: TokenMap
) -> Float[np.ndarray, "patch query"]:
    """The patches of all images below each other."""
    tables: Sequence[np.ndarray] = [
        weights[:, layout.n_class : layout.n_positions].T
        for weights, layout in zip(mean, token_map.layouts, strict=True)
    ]
    return np.concatenate(tables)

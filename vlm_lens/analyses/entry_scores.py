"""Scores of neurons at positions: a ranked list in which a neuron may appear more than once."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.neurons.neuron import split_name
from vlm_lens.results import Result

_ARRAYS = ("name_index", "position", "index", "score")


@dataclass(frozen=True, eq=False, repr=False)
class EntryScores(Result):
    """Entries (hook point, position, neuron) of one prompt, best first.

    A neuron that scores high at several positions has several entries. Masking it masks it at all
    positions, so that the first 3 entries may be fewer than 3 neurons: `n_neurons` counts them.

    Attributes:
        sizes: The hook points, and how many neurons each of them has.
        name_index: Which of the hook points each entry is at, from 0 in the order of `sizes`.
        position: Its position in the prompt.
        index: Its neuron.
        score: Its score, falling; float32, on the CPU like the others.
        tokens: The prompt's tokens as text, one for each position.
        method: What scored them.
        parameters: With what: every parameter, the model and the versions.

    Raises:
        ValueError: The arrays do not fit each other, or the scores do not fall.

    Example:
        >>> import torch
        >>> scores = EntryScores(
        ...     sizes={"blocks.0.mlp.hook_pre": 9, "blocks.1.mlp.hook_pre": 9},
        ...     name_index=torch.tensor([1, 1, 0]), position=torch.tensor([0, 1, 1]),
        ...     index=torch.tensor([5, 5, 2]), score=torch.tensor([8.0, 7.5, 6.0]),
        ...     tokens=("<s>", "what"), method="PCICN", parameters={})
        >>> scores
        EntryScores(PCICN: 3 entries of 2 neurons; first blocks.1.mlp.hook_pre[5] at 0, '<s>')
        >>> [str(neuron) for neuron in scores.neurons]
        ['blocks.1.mlp.hook_pre[5]', 'blocks.0.mlp.hook_pre[2]']
        >>> scores.n_neurons(2), scores.n_entries(2)
        (1, 3)
    """

    KIND = "entry_scores"
    DIGITS = ".6g"

    sizes: dict[str, int]
    name_index: Int[Tensor, " entry"]
    position: Int[Tensor, " entry"]
    index: Int[Tensor, " entry"]
    score: Float[Tensor, " entry"]
    tokens: tuple[str, ...]
    method: str
    parameters: dict[str, Any]

    def __post_init__(self) -> None:
        lengths = {name: tuple(getattr(self, name).shape) for name in _ARRAYS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected one value for each entry in every array, got {lengths}.")
        limits = {"name_index": len(self.sizes), "position": len(self.tokens)}
        for name, limit in limits.items():
            values = getattr(self, name)
            if len(self) and not 0 <= int(values.min()) <= int(values.max()) < limit:
                raise ValueError(
                    f"expected {name} from 0 to {limit - 1}, got {int(values.min())} to "
                    f"{int(values.max())}."
                )
        if (self.score[1:] > self.score[:-1]).any() or self.score.isnan().any():
            raise ValueError("expected scores from the highest to the lowest, none of them NaN.")

    def __len__(self) -> int:
        return len(self.score)

    # Entries and neurons ----------------------------------------------------------------------

    @cached_property
    def _first_entries(self) -> dict[Neuron, int]:
        """Each neuron's first entry, counted from 0, in the list's order."""
        names, first = tuple(self.sizes), {}
        pairs = zip(self.name_index.tolist(), self.index.tolist(), strict=True)
        for entry, (name, index) in enumerate(pairs):
            first.setdefault((name, index), entry)
        return {Neuron(names[name], index): entry for (name, index), entry in first.items()}

    @property
    def neurons(self) -> NeuronSet:
        """The distinct neurons, each at the rank of its first entry."""
        return NeuronSet(self._first_entries, sizes=self.sizes)

    def n_entries(self, n_neurons: int) -> int:
        """How many of the first entries it takes to have so many distinct neurons.

        Raises:
            ValueError: All entries together have fewer.
        """
        firsts = list(self._first_entries.values())
        _check_count("neurons", n_neurons, len(firsts))
        return 0 if n_neurons == 0 else firsts[n_neurons - 1] + 1

    def n_neurons(self, n_entries: int) -> int:
        """How many distinct neurons the first entries have.

        Raises:
            ValueError: There are fewer entries.
        """
        _check_count("entries", n_entries, len(self))
        return bisect_left(list(self._first_entries.values()), n_entries)

    # Looking at it ----------------------------------------------------------------------------

    def to_dataframe(self, k: int | None = 10) -> pd.DataFrame:
        """The first `k` entries, or all.

        Returns:
            A row for each entry: rank (from 0), component, layer (<NA> = none), site, index, name,
            position, token and score.
        """
        names = tuple(self.sizes)
        chosen = [names[name] for name in self.name_index[:k].tolist()]
        columns = ["component", "layer", "site"]
        frame = pd.DataFrame([split_name(name) for name in chosen], columns=columns)
        positions = self.position[:k].tolist()
        frame = frame.assign(
            index=self.index[:k].tolist(),
            name=chosen,
            position=positions,
            token=[self.tokens[position] for position in positions],
            score=self.score[:k].tolist(),
        )
        frame.insert(0, "rank", range(len(frame)))
        whole = dict.fromkeys(("rank", "index", "position"), "int64")
        return frame.astype({**whole, "layer": "Int64", "score": "float64"})

    def table(self) -> pd.DataFrame:
        """The ten best entries."""
        return self.to_dataframe()

    def summary(self) -> str:
        """How many entries there are, and the first, in a line."""
        neurons = self._first_entries
        counts = f"{self.method}: {len(self)} entries of {len(neurons)} neurons"
        if not neurons:
            return counts
        position = int(self.position[0])
        where = f"{next(iter(neurons))} at {position}, {self.tokens[position]!r}"
        return f"{counts}; first {where}"


def _check_count(what: str, n: int, total: int) -> None:
    if not 0 <= n <= total:
        raise ValueError(f"expected a number of {what} from 0 to {total}, all there are, got {n}.")

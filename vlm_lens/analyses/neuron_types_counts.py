"""The second pass: how many of each neuron's top samples are visual, text, both or neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_lens.analyses.neuron_types_null import convolved, one_more, sample_chances
from vlm_lens.inputs.token_types import TokenType
from vlm_lens.passes.positions import Part
from vlm_lens.passes.reducers import Reading, Reducer, State

Comparison = Literal[">=", ">"]
SCALE = 10.0
"""What a neuron's maximum becomes."""

_IN_CACHE = 2**17


@dataclass(frozen=True)
class Thresholds:
    """When a sample counts as activated.

    Attributes:
        T_v: A visual token is activated above this, on the scale from 0 to 10.
        n_v: So many of them make a sample visual-activated.
        T_t: A text token is activated above this.
        n_t: So many of them make a sample text-activated.
    """

    T_v: int | float
    n_v: int
    T_t: int | float
    n_t: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """All combinations of thresholds that are tried at once; the first is the one that counts.

    Attributes:
        visual: Pairs of T_v and n_v.
        text: Pairs of T_t and n_t.
        comparison: Whether exactly n tokens are enough (">=") or one more is needed (">").
    """

    visual: tuple[tuple[float, int], ...]
    text: tuple[tuple[float, int], ...]
    comparison: Comparison

    @classmethod
    def around(
        cls, first: Thresholds, others: Mapping[str, Sequence[int | float]], comparison: Comparison
    ) -> Grid:
        """These thresholds and every combination of others."""

        def pairs(T: str, n: str) -> tuple[tuple[float, int], ...]:
            main = (float(getattr(first, T)), int(getattr(first, n)))
            values = [others.get(name, [getattr(first, name)]) for name in (T, n)]
            every = ((float(t), int(k)) for t, k in product(*values))
            return tuple(dict.fromkeys([main, *every]))

        return cls(visual=pairs("T_v", "n_v"), text=pairs("T_t", "n_t"), comparison=comparison)

    @property
    def levels(self) -> list[float]:
        """All thresholds of activations that occur."""
        return sorted({T for T, _ in (*self.visual, *self.text)})

    def need(self, n: int) -> int:
        """At least so many tokens are needed."""
        return n if self.comparison == ">=" else n + 1


@dataclass(frozen=True, eq=False)
class SiteCounts:
    """Of each neuron of a hook point, how many of its top samples are activated.

    Attributes:
        visual: By pair of visual thresholds, how many are visual-activated.
        text: By pair of text thresholds, how many are text-activated.
        both: How many are both, by both pairs.
        chances: At the thresholds that count, how likely 0, 1, 2, ... of the samples so far are of
            each type if it is drawn which tokens are visual, float64.
    """

    visual: Int[Tensor, "v d"]
    text: Int[Tensor, "t d"]
    both: Int[Tensor, "v t d"]
    chances: Float[Tensor, "4 counts d"]


@dataclass(frozen=True, kw_only=True)
class Counter(Reducer):
    """Counts the top samples of each type; its states are `SiteCounts`.

    Attributes:
        types: Of visual and of text tokens.
        grid: When samples are activated.
        maxima: By hook name, each neuron's largest activation.
        top: By hook name, the numbers of each neuron's top samples.
    """

    types: tuple[TokenType, TokenType]
    grid: Grid
    maxima: Mapping[str, Float[Tensor, " d"]]
    top: Mapping[str, Int[Tensor, "rank d"]]

    def __call__(self, reading: Reading) -> State:
        name, numbers = reading.site, reading.batch.numbers
        activations, device = reading.activation.flatten(0, 1), reading.activation.device
        maxima, grid = self.maxima[name].to(device), self.grid
        n_tokens = torch.zeros(2, len(numbers), dtype=torch.int64, device=device)
        above = torch.zeros(2, len(grid.levels), len(numbers), len(maxima), device=device)
        for part in reading.parts(self.types):
            [kind] = part.types
            n_tokens[kind, part.samples] = torch.tensor(part.lengths, device=device)
            above[kind] += _above(activations, part, len(numbers), maxima, grid.levels)
        top = self.top[name].to(device)
        is_top = torch.stack([(top == number).any(0) for number in numbers])
        visual = self._activated(grid.visual, above[0]) & is_top
        text = self._activated(grid.text, above[1]) & is_top
        return {
            "visual": visual.sum(1).int(),
            "text": text.sum(1).int(),
            "both": torch.einsum("vsd,tsd->vtd", visual.float(), text.float()).int(),
            "chances": self._chances(len(top), above.sum(0), n_tokens, is_top),
        }

    def plus(self, one: State, other: State) -> State:
        chances = convolved(one["chances"], other["chances"])
        return {**super().plus(one, other), "chances": chances}

    def _activated(
        self, pairs: Sequence[tuple[float, int]], above: Float[Tensor, "level sample d"]
    ) -> Bool[Tensor, "pair sample d"]:
        levels = self.grid.levels
        return torch.stack([above[levels.index(T)] >= self.grid.need(n) for T, n in pairs])

    def _chances(
        self,
        n_top: int,
        above: Float[Tensor, "level sample d"],
        n_tokens: Int[Tensor, "2 sample"],
        is_top: Bool[Tensor, "sample d"],
    ) -> Float[Tensor, "4 counts d"]:
        """Each neuron's chances with its top samples of this batch."""
        (T_v, n_v), (T_t, n_t) = self.grid.visual[0], self.grid.text[0]
        sample, neuron = is_top.nonzero().T
        of_each = sample_chances(
            n_visual=n_tokens[0, sample],
            n_text=n_tokens[1, sample],
            above_visual=above[self.grid.levels.index(T_v), sample, neuron].long(),
            above_text=above[self.grid.levels.index(T_t), sample, neuron].long(),
            visual_first=T_v <= T_t,
            need_visual=self.grid.need(n_v),
            need_text=self.grid.need(n_t),
        )
        shape = (4, n_top + 1, is_top.shape[1])
        chances = torch.zeros(shape, dtype=torch.float64, device=above.device)
        chances[:, 0] = 1
        for i in range(len(is_top)):
            here = sample == i
            chances[..., neuron[here]] = one_more(chances[..., neuron[here]], of_each[:, here])
        return chances


def _above(
    activations: Float[Tensor, "position d"],
    part: Part,
    n_samples: int,
    maxima: Float[Tensor, " d"],
    levels: Sequence[int | float],
) -> Float[Tensor, "level sample d"]:
    """How many of each sample's positions are above each threshold, on the scale from 0 to 10.

    Negative activations are 0 on this scale, and a neuron that is never positive is 0 throughout.
    """
    wide = torch.promote_types(activations.dtype, torch.float32)
    limits = [(level / SCALE * maxima.to(wide)).where(maxima > 0, torch.inf) for level in levels]
    found = torch.zeros(len(levels), n_samples, len(maxima), dtype=wide, device=activations.device)
    owners = torch.tensor(part.samples).repeat_interleave(torch.tensor(part.lengths))
    one_hot = (owners == torch.arange(n_samples)[:, None]).to(activations.device, wide)
    on_cpu = activations.device.type == "cpu"
    at_once = max(1, _IN_CACHE // len(maxima)) if on_cpu else len(part.rows)
    for rows, of in zip(part.rows.split(at_once), one_hot.split(at_once, dim=1), strict=True):
        chunk = activations.index_select(0, rows).to(wide)
        flags = torch.empty_like(chunk)
        for i, limit in enumerate(limits):
            found[i] += of @ torch.gt(chunk, limit, out=flags)
    return found

"""From what comes by at one hook point in one batch to a state that merges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.inputs.token_types import ANY, TokenType
from vlm_lens.passes.batch import Batch
from vlm_lens.passes.positions import Part, Positions

State = dict[str, Tensor]
"""What a reducer keeps. Nothing else: so that files, shards and merging need no code of its own."""


@dataclass(frozen=True)
class Beside:
    """Another hook point of the same layer, which comes by before the one that is read.

    Attributes:
        name: What a reading calls it.
        points: How the names of hook points end; the first one that the model has is read.
        of: What is kept of its tensor, at once; None for all of it.
    """

    name: str
    points: tuple[str, ...]
    of: Callable[[Tensor, str, Positions], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """What a reducer sees: one hook point in one batch.

    Attributes:
        site: The hook point.
        activation: What came by there.
        positions: What each position is, and whose.
        gradient: Of the loss by the activation, where the reducer asked for it.
        beside: What came by at the layer's other hook points that the reducer asked for; those that
            the layer does not have are missing.
    """

    site: str
    activation: Float[Tensor, "row pos *d"]
    positions: Positions
    gradient: Float[Tensor, "row pos *d"] | None = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def batch(self) -> Batch:
        """The samples."""
        return self.positions.batch

    def parts(self, types: tuple[TokenType, ...]) -> list[Part]:
        """The positions of some types, one part for each combination that there is."""
        shape, device = self.activation.shape, self.activation.device
        return self.positions.of(types, self.site, shape, device)

    def samples(self, over: str = ANY) -> Iterator[tuple[int, Int[Tensor, " n"]]]:
        """Each sample that has positions of a type: its place in the batch, and these positions.

        Positions are counted through all rows of the activation, as `rows` takes them.
        """
        for part in self.parts((TokenType.parse(over),)):
            yield from zip(part.samples, part.rows.split(part.lengths), strict=True)

    def rows(self, positions: Int[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """The activations at some positions, at least in float32; those of heads one by one."""
        return wide(self.activation.flatten(0, 1)[positions].flatten(1))


def wide(tensor: Tensor) -> Tensor:
    """At least in float32.

    Example:
        >>> wide(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Reducer:
    """Base of what reduces: a frozen dataclass whose fields say all that its states depend on.

    Attributes:
        beside: Which other hook points of the layer it reads.
    """

    beside: tuple[Beside, ...] = ()

    @property
    def gradient(self) -> bool:
        """Whether it wants the gradient of each sample's own loss: then there is a backward."""
        return False

    def __call__(self, reading: Reading) -> State:
        """What is kept of a batch; empty where nothing of it counts."""
        raise NotImplementedError

    def plus(self, one: State, other: State) -> State:
        """Both together; in whatever order they come, it is the same. By default all adds up."""
        both = {name: one[name] + other[name] for name in one if name in other}
        return {**one, **other, **both}

    def is_finite(self, state: State) -> bool:
        """Whether nothing in it is infinite or NaN; samples that make it so are left out."""
        floats = [tensor for tensor in state.values() if tensor.is_floating_point()]
        return all(bool(tensor.isfinite().all()) for tensor in floats)


PerSample = Callable[[Reading, int, Int[Tensor, " n"]], Tensor]
"""From a reading, a sample's place in the batch and its positions to anything that adds up."""


@dataclass(frozen=True)
class Total(Reducer):
    """Adds up over samples what a function makes of each one's positions.

    Attributes:
        of: The function.
        over: Which positions; samples that have none do not count.
        beside: Which other hook points of the layer it reads.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.passes import one_pass
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> largest = Total(lambda reading, sample, rows: reading.rows(rows).amax(0), over="image")
        >>> sites = ["blocks.0.mlp.hook_act"]
        >>> passed = one_pass(model, load_samples("shapes-llava", n=3), {"x": largest}, sites=sites)
        >>> state = passed.states["data", "x", "blocks.0.mlp.hook_act"]
        >>> state["sum"].shape, int(state["samples"]), int(state["positions"])
        (torch.Size([384]), 3, 192)
    """

    of: PerSample
    over: str = ANY
    beside: tuple[Beside, ...] = ()

    def __call__(self, reading: Reading) -> State:
        values, lengths = [], []
        for sample, rows in reading.samples(self.over):
            values.append(self.of(reading, sample, rows))
            lengths.append(len(rows))
        if not values:
            return {}
        return {
            "sum": torch.stack(values).double().sum(0),
            "samples": torch.tensor(len(values)),
            "positions": torch.tensor(sum(lengths)),
        }


@dataclass(frozen=True)
class Rows(Reducer):
    """Keeps what a function makes of each sample's positions, a row for each sample.

    Attributes:
        of: The function.
        over: Which positions; samples that have none have no row.
        beside: Which other hook points of the layer it reads.
    """

    of: PerSample
    over: str = ANY
    beside: tuple[Beside, ...] = ()

    def __call__(self, reading: Reading) -> State:
        rows, numbers = [], []
        for sample, positions in reading.samples(self.over):
            rows.append(self.of(reading, sample, positions))
            numbers.append(reading.batch.numbers[sample])
        if not rows:
            return {}
        return {"rows": torch.stack(rows).cpu(), "numbers": torch.tensor(numbers)}

    def plus(self, one: State, other: State) -> State:
        order = torch.cat([one["numbers"], other["numbers"]]).argsort(stable=True)
        return {name: torch.cat([one[name], other[name]])[order] for name in one}


def mean_of(reading: Reading, sample: int, rows: Int[Tensor, " n"]) -> Float[Tensor, " d"]:  # noqa: ARG001
    """The mean over a sample's positions, for `Total` and `Rows`."""
    return reading.rows(rows).mean(0)


def sum_of(reading: Reading, sample: int, rows: Int[Tensor, " n"]) -> Float[Tensor, " d"]:  # noqa: ARG001
    """The sum over a sample's positions, likewise."""
    return reading.rows(rows).sum(0)

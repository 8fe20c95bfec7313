"""From one number per position to one per sample, added up over a batch, wherever a neuron is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_lens.inputs.owners import NO_SAMPLE, Owners
from vlm_lens.neurons.neuron import split_name
from vlm_lens.passes.batch import Batch

Tokens = Literal["mean", "max", "sum", "last"]
"""How a sample's positions become one number."""

PerPosition = Callable[..., Tensor]
"""From tensors [..., d] of one hook point: a number >= 0 for each position and neuron [..., d].

It is in float32, or in the tensors' own dtype where that is wider.
"""

_IN_CACHE = 2**16
"""On a CPU so many numbers are worked on at a time, so that they stay in its cache."""


class TokenPool:
    """Adds up over a batch's samples what each one's positions say about each neuron.

    Args:
        batch: The samples.
        tokens: How a sample's positions become one number: their mean, largest value or sum, or the
            last of them. That is, in a language model that reads and writes, the one that the
            answer's first token is predicted from; elsewhere the last one of the last image.
        first_token: Whether the first token of each of the language model's sequences counts.
    """

    def __init__(self, batch: Batch, tokens: Tokens, *, first_token: bool = True) -> None:
        self._batch, self._tokens = batch, tokens
        self._owners = batch.owners(first_token=first_token)
        self._plans: dict[tuple[int, torch.device, torch.dtype], _Sum | _Largest] = {}
        self._scratch = _Scratch()

    def __call__(
        self, name: str, per_position: PerPosition, *tensors: Float[Tensor, "row pos d"]
    ) -> Float[Tensor, " d"]:
        """The sum over samples of ``per_position(*tensors)``, pooled over each one's positions.

        Args:
            name: The hook point that the tensors are from.
            per_position: What is pooled; it is given some of the positions at a time.
            *tensors: Activations there, their gradients, or both.
        """
        n_rows, n_positions = tensors[0].shape[:2]
        owners = self._owners.of(name, n_rows, n_positions)
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        key = (id(owners), tensors[0].device, wide)  # which are kept, and so stay alive
        if key not in self._plans:
            self._plans[key] = self._plan(name, owners, *key[1:])
        return self._plans[key](partial(self._into_scratch, per_position, wide), *tensors)

    def _into_scratch(
        self, per_position: PerPosition, dtype: torch.dtype, *parts: Tensor
    ) -> Tensor:
        return per_position(*parts, out=self._scratch.like(parts[0], dtype))

    def _plan(
        self, name: str, owners: Owners, device: torch.device, dtype: torch.dtype
    ) -> _Sum | _Largest:
        if self._tokens == "max":
            return _largest(owners, len(self._batch), device)
        flat = owners.flatten()
        if self._tokens == "last":
            chosen = self._last(name, owners).to(device)
            return _Sum(torch.ones(len(chosen), device=device, dtype=dtype), chosen)
        weights = (flat != NO_SAMPLE).double()
        if self._tokens == "mean":
            counts = torch.bincount(flat[flat != NO_SAMPLE], minlength=len(self._batch))
            weights = weights / counts.clamp(min=1)[flat]
        return _Sum(weights.to(dtype).to(device), None)

    def _last(self, name: str, owners: Owners) -> Int[Tensor, " sample"]:
        """Of each sample that is there, one position of all rows."""
        n_samples, width = len(self._batch), owners.shape[1]
        if split_name(name)[0] in ("language_model", "decoder"):
            return torch.arange(n_samples) * width + self._batch.scored.cpu().int().argmax(1)
        flat = owners.flatten()
        places = torch.arange(len(flat))[flat != NO_SAMPLE]
        last = torch.full((n_samples,), -1).scatter_reduce(
            0, flat[flat != NO_SAMPLE], places, "amax"
        )
        return last[last >= 0]


@dataclass(frozen=True, eq=False)
class _Sum:
    """A weighted sum over positions.

    Attributes:
        weights: The weight of each position of all rows.
        chosen: The positions that have one of these weights; None for all.
    """

    weights: Float[Tensor, " position"]
    chosen: Int[Tensor, " position"] | None

    def __call__(self, per_position: PerPosition, *tensors: Tensor) -> Float[Tensor, " d"]:
        flat = [tensor.flatten(0, 1) for tensor in tensors]
        if self.chosen is not None:
            flat = [tensor[self.chosen] for tensor in flat]
        size = _at_once(flat[0])
        parts = zip(*(tensor.split(size) for tensor in (self.weights, *flat)), strict=True)
        return torch.stack([weights @ per_position(*some) for weights, *some in parts]).sum(0)


@dataclass(frozen=True, eq=False)
class _Largest:
    """The largest value of each sample's positions, added up over the samples.

    Attributes:
        real: Which positions belong to a sample; None for all.
        samples: The sample of each row; None where row i is sample i.
        n_samples: How many samples there are.
    """

    real: Bool[Tensor, "row pos 1"] | None
    samples: Int[Tensor, " row"] | None
    n_samples: int

    def __call__(self, per_position: PerPosition, *tensors: Tensor) -> Float[Tensor, " d"]:
        size = _at_once(tensors[0])
        rows = []
        for i, parts in enumerate(zip(*(tensor.split(size) for tensor in tensors), strict=True)):
            found = per_position(*parts)
            if self.real is not None:
                found *= self.real[i * size : (i + 1) * size]
            rows.append(found.amax(1))
        largest = torch.cat(rows)
        if self.samples is None:
            return largest.sum(0)
        by_sample = largest.new_zeros(self.n_samples, largest.shape[1])
        index = self.samples[:, None].expand_as(largest)
        return by_sample.scatter_reduce_(0, index, largest, "amax").sum(0)


def _largest(owners: Owners, n_samples: int, device: torch.device) -> _Largest:
    real = owners != NO_SAMPLE
    samples = owners.amax(1).clamp(min=0)  # a row that is nobody's has nothing to add to sample 0
    in_order = torch.equal(samples, torch.arange(n_samples))
    return _Largest(
        real=None if real.all() else real[..., None].to(device),
        samples=None if in_order else samples.to(device),
        n_samples=n_samples,
    )


def _at_once(tensor: Tensor) -> int:
    """How many entries of the first axis to work on at a time."""
    on_cpu = tensor.device.type == "cpu"
    return max(1, _IN_CACHE // tensor.shape[1:].numel() if on_cpu else len(tensor))


class _Scratch:
    """Memory that is written again and again, and so stays in the cache."""

    def __init__(self) -> None:
        self._known: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """As much of it as a tensor has entries; what was written there before is lost."""
        key = (tensor.device, dtype)
        if key not in self._known or len(self._known[key]) < tensor.numel():
            self._known[key] = torch.empty(tensor.numel(), device=tensor.device, dtype=dtype)
        return self._known[key][: tensor.numel()].view(tensor.shape)

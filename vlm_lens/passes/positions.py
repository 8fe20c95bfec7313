"""Which positions of an activation are of which token type, and of which sample."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from vlm_lens.inputs.owners import NO_SAMPLE, PositionOwners
from vlm_lens.inputs.token_map import TokenMap
from vlm_lens.inputs.token_types import KINDS, TokenType
from vlm_lens.neurons.neuron import split_name
from vlm_lens.passes.batch import Batch

T = TypeVar("T")

_NOTHING = -1
_READ = ("cross_attn.hook_k", "cross_attn.hook_v")
"""What a decoder reads: positions of the encoder, or of an image's tiles."""
_CODES: dict[tuple[str, str], int] = {kind: code for code, kind in enumerate(KINDS)}


@dataclass(frozen=True, eq=False)
class Part:
    """The positions of an activation that are of the same token types, sample after sample.

    Attributes:
        types: The places of these token types in the list of all.
        rows: The positions, counted through all rows of the activation.
        samples: The places in the batch of the samples that have any.
        lengths: How many positions each of these samples has.
        ordinals: Each position's number among all positions that its sample has at this hook point:
            its place in the sequence of the sample alone, without padding.
        spans: Each sample's positions, to index the activation with: a slice if nothing else is
            between them.
    """

    types: tuple[int, ...]
    rows: Int[Tensor, " n"]
    samples: list[int]
    lengths: list[int]
    ordinals: Int[Tensor, " n"]
    spans: list[slice | Int[Tensor, " _its"]]


class Positions:
    """Says of which type each position of a batch's activations is, and whose.

    At hook points of the language model, positions are what the token maps say. In an encoder of
    images or sounds and in a projector, all of them (class tokens included) are "image" (or
    "audio") and "prompt"; in a Q-Former, queries are, and text beside them is "text".

    Args:
        batch: The batch.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> from vlm_lens.passes.answers import Answers
        >>> from vlm_lens.passes.batch import make_batch
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> batch = make_batch(model, load_samples("shapes-llava", n=2), Answers())
        >>> types = (TokenType.parse("image"), TokenType.parse("text"))
        >>> pixels, words = Positions(batch).of(types, "blocks.0.mlp.hook_act", batch.real.shape)
        >>> pixels.lengths, pixels.ordinals[:3].tolist()
        ([64, 64], [1, 2, 3])
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._codes: dict[tuple[str, int, int], Int[Tensor, "row pos"]] = {}
        self._parts: dict[tuple, list[Part]] = {}
        self._made: dict[Hashable, Any] = {}

    @cached_property
    def _owners(self) -> PositionOwners:
        return self.batch.owners()

    def of(
        self,
        types: tuple[TokenType, ...],
        name: str,
        shape: Sequence[int],
        device: torch.device | None = None,
    ) -> list[Part]:
        """The parts of an activation.

        Args:
            types: Token types. They may overlap; positions of none of them are in no part.
            name: A hook name.
            shape: The activation's shape there; its first two axes are rows and positions.
            device: Where the indices are to be; by default on the CPU.

        Raises:
            ValueError: Activations of this shape are not what the batch gives at this point.
        """
        component = split_name(name)[0].split(".")[0]
        kind = "text_mlp" if ".text_mlp." in name else component
        kind = "read" if name.endswith(_READ) else kind
        place = (kind, shape[0], shape[1])
        key = (types, *place, device)
        if key not in self._parts:
            owners = self._owners.of(name, *place[1:])
            if place not in self._codes:
                self._codes[place] = self._new_codes(*place)
            device = device or torch.device("cpu")
            self._parts[key] = _split(owners, self._codes[place], types, device)
        return self._parts[key]

    def once(self, key: Hashable, make: Callable[[Batch], T]) -> T:
        """What a function makes of the batch; made once for each key."""
        if key not in self._made:
            self._made[key] = make(self.batch)
        return self._made[key]

    def real_rows(self, name: str, n_rows: int, n_positions: int) -> Tensor:
        """Which positions belong to any sample [row, pos], on the CPU."""
        return self._owners.of(name, n_rows, n_positions) != NO_SAMPLE

    def _new_codes(self, kind: str, n_rows: int, n_positions: int) -> Int[Tensor, "row pos"]:
        """What each position is, as a place in `KINDS`."""
        is_encoder_read = kind == "read" and len(self.batch.maps[0]) == n_positions
        if is_encoder_read or kind in ("language_model", "encoder"):
            return _codes_of(self.batch.maps)
        if kind == "decoder" and self.batch.decoder is not None:
            return _codes_of(self.batch.decoder)
        sounds = "feature_attention_mask" in self.batch.arguments
        medium = _CODES[("audio" if sounds else "image", "prompt")]
        codes = torch.full((n_rows, n_positions), medium)
        if kind == "text_mlp":
            codes[:] = _CODES[("text", "prompt")]
        elif kind == "qformer":
            codes[:, self._n_queries() :] = _CODES[("text", "prompt")]
        return codes

    def _n_queries(self) -> int:
        layouts = [layout for one in self.batch.maps for layout in one.layouts]
        return len(layouts[0].tokens) if layouts else 0


def _codes_of(maps: Sequence[TokenMap]) -> Int[Tensor, "row pos"]:
    pairs = (zip(one.modality, one.role, strict=True) for one in maps)
    # Padding is nothing.
    return torch.tensor([[_CODES.get(pair, _NOTHING) for pair in row] for row in pairs])


def _split(
    owners: Int[Tensor, "row pos"],
    codes: Int[Tensor, "row pos"],
    types: Sequence[TokenType],
    device: torch.device,
) -> list[Part]:
    """One part for each combination of types that there is; the order is that of the types."""
    of_kind = [tuple(i for i, one in enumerate(types) if kind in one.kinds) for kind in KINDS]
    combinations = sorted(set(of_kind) - {()})
    places = [combinations.index(its) if its else _NOTHING for its in of_kind]
    place_of = torch.tensor([*places, _NOTHING])  # the last one is that of code -1
    owner = owners.flatten()
    place = place_of[codes.flatten()].where(owner != NO_SAMPLE, _NOTHING)
    ordinals = _ordinals(owner)
    found = []
    for number, combination in enumerate(combinations):
        rows = (place == number).nonzero()[:, 0]
        if len(rows):
            rows = rows[owner[rows].argsort(stable=True)]
            samples, lengths = owner[rows].unique_consecutive(return_counts=True)
            part = Part(
                types=combination,
                rows=rows.to(device),
                samples=samples.tolist(),
                lengths=lengths.tolist(),
                ordinals=ordinals[rows].to(device),
                spans=[_span(its, device) for its in rows.split(lengths.tolist())],
            )
            found.append(part)
    return found


def _span(rows: Int[Tensor, " its"], device: torch.device) -> slice | Int[Tensor, " _its"]:
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first == len(rows) - 1 else rows.to(device)


def _ordinals(owner: Int[Tensor, " position"]) -> Int[Tensor, " position"]:
    """Each position's number among those of the same owner."""
    order = owner.argsort(stable=True)
    _, counts = owner[order].unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    numbers = torch.empty_like(owner)
    numbers[order] = torch.arange(len(owner)) - starts.repeat_interleave(counts)
    return numbers

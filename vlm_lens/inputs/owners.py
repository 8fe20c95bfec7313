"""Which sample of a batch each row and position of an activation belongs to, at any hook point.

Rows of the language model are samples. Rows of an encoder, a Q-Former or a projector are pictures:
a sample has none, one, or one for each tile of each of its images. Both are filled up where they
are shorter than the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vlm_lens.hooks.heads import PATTERN_SITES
from vlm_lens.inputs.token_map import TokenMap

NO_SAMPLE = -1
"""The owner of padding, and of pictures that only fill a batch up."""

SOME_SAMPLE = -2
"""The owner of what is real where it is not known which sample's it is."""

Owners = Int[Tensor, "row pos"]
Mask = Bool[Tensor, "_row _pos"]
Rows = Int[Tensor, " _row"]

READ = (
    *("input_ids", "attention_mask", "inputs_embeds", "decoder_input_ids"),
    *("decoder_attention_mask", "qformer_attention_mask", "feature_attention_mask"),
    *("aspect_ratio_ids", "aspect_ratio_mask"),
)
"""The arguments of a forward that say whose its rows and positions are."""

TOKENS = ("input_ids", "inputs_embeds", "decoder_input_ids")
"""The arguments of which a model with text has at least one."""

_PARTS = ("vision_encoder", "audio_encoder", "qformer", "projector", "encoder", "decoder")
_READ = ("cross_attn.hook_k", "cross_attn.hook_v")


def part_of(name: str) -> str:
    """The part of a model that a hook point is in; "language_model" where its name says none.

    Example:
        >>> part_of("vision_encoder.blocks.0.hook_mlp_out"), part_of("blocks.0.hook_mlp_out")
        ('vision_encoder', 'language_model')
    """
    first = name.partition(".")[0]
    return first if first in _PARTS else "language_model"


def rows_are_samples(name: str) -> bool:
    """Whether the first axis of activations at a hook point is the batch.

    It is not in encoders, Q-Former and projector, nor where a language model reads an image's tiles
    by cross-attention (Mllama).

    Example:
        >>> rows_are_samples("decoder.blocks.0.hook_mlp_out"), rows_are_samples("projector.hook_in")
        (True, False)
    """
    part = part_of(name)
    return part in ("encoder", "decoder") or (part == "language_model" and not name.endswith(_READ))


@dataclass(frozen=True, eq=False)
class PositionOwners:
    """Says which sample each row and each position of an activation belongs to.

    `of_run` makes it.

    Attributes:
        real: By part, the positions of its sequence that hold anything.
        read: The positions that hold anything of the encoder that a decoder reads.
        pictures: The sample of each picture or sound; None where it is not known.
        images: Where attention is among all tiles of an image, the sample of each image.
        tiles: Where text reads an image's tiles, the sample of each tile that there can be.
        lengths: How many positions of each picture are real, one after the other, and how many
            there are in all: once for each number that there can be. Empty where all are real.
        query_text: The real positions of the text next to a Q-Former's queries.
        n_queries: How many queries a Q-Former has.
        patches: By hook name, which patches are real, where the run itself has shown it.

    Example:
        >>> mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
        >>> owners = PositionOwners.of_run({"input_ids": mask, "attention_mask": mask})
        >>> owners.of("blocks.0.hook_mlp_out", 2, 3).tolist()
        [[-1, 0, 0], [1, 1, 1]]
        >>> owners.take([1]).of("blocks.0.hook_mlp_out", 1, 3).tolist()
        [[0, 0, 0]]
    """

    real: dict[str, Mask]
    read: Mask | None = None
    pictures: Rows | None = None
    images: Rows | None = None
    tiles: Rows | None = None
    lengths: list[tuple[Rows, int]] = field(default_factory=list)
    query_text: Mask | None = None
    n_queries: int | None = None
    patches: dict[str, Mask] = field(default_factory=dict)
    _known: dict[tuple[str, int, int], Owners] = field(default_factory=dict, init=False)

    @classmethod
    def of_run(
        cls,
        arguments: Mapping[str, Any],
        token_maps: Sequence[TokenMap] | None = None,
        *,
        real: Mask | None = None,
        first_token: bool = True,
        patches: Mapping[str, Mask] | None = None,
        n_queries: int | None = None,
        cut: Callable[[Tensor], Tensor] = lambda mask: mask,
    ) -> PositionOwners:
        """What a forward's arguments say.

        Args:
            arguments: Keyword arguments of the model's forward, of which those in `READ` are read.
            token_maps: One map for each sample. Without them it is not known whose the pictures of
                several samples are.
            real: The positions of the sequence that predicts, that of the decoder if there is one,
                that hold anything; by default what the masks say.
            first_token: Whether the first token of each sequence belongs to its sample, or to none.
            patches: See `PositionOwners`.
            n_queries: How many queries a Q-Former has; by default what the token maps say.
            cut: What has been cut out of the sequences' positions, done to a mask of all of them.
        """
        layouts = [layout for one in token_maps or () for layout in one.layouts]
        if n_queries is None and layouts:
            n_queries = len(layouts[0].tokens)
        query_text = arguments.get("qformer_attention_mask")
        sequences = _sequences(arguments, real)
        return cls(
            real={part: cut(_without_first(m, first_token)) for part, m in sequences.items()},
            read=sequences.get("encoder"),
            pictures=_pictures(
                arguments, token_maps, n_samples=len(next(iter(sequences.values())))
            ),
            images=_images(arguments),
            tiles=_tiles(arguments),
            lengths=_lengths(arguments, token_maps),
            query_text=None if query_text is None else query_text.bool().cpu(),
            n_queries=n_queries,
            patches=dict(patches or {}),
        )

    @property
    def n_samples(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.real.values())))

    def take(self, samples: Sequence[int]) -> PositionOwners:
        """The owners of a batch of some of the samples, in this order, and of their pictures.

        What is nobody's is left out.
        """
        chosen, known = list(samples), self.pictures is not None or self.n_samples == 1

        def its(values: Tensor) -> Tensor:
            return values[self.rows_of("projector.hook_out", len(values), chosen)]

        return replace(
            self,
            real={part: mask[chosen] for part, mask in self.real.items()},
            read=None if self.read is None else self.read[chosen],
            pictures=_renumbered(self.pictures, chosen),
            images=_renumbered(self.images, chosen),
            tiles=_renumbered(self.tiles, chosen),
            lengths=[(its(counts), width) for counts, width in self.lengths if known],
            query_text=its(self.query_text) if known and self.query_text is not None else None,
            patches={name: its(mask) for name, mask in self.patches.items() if known},
        )

    def rows_of(self, name: str, n_rows: int, samples: Sequence[int]) -> Rows:
        """The rows of some samples at a hook point, sample after sample.

        Args:
            name: A hook name.
            n_rows: Size of the first axis of the activations there.
            samples: The samples' numbers.

        Raises:
            ValueError: It is not known whose the rows are.
        """
        owners = self._rows(name, n_rows)
        if (owners == SOME_SAMPLE).any():
            raise ValueError(
                f"Expected to know which of the {self.n_samples} samples each picture at {name!r} "
                "is of, but the model was run without token maps: run it on what "
                "model.prepare(...) returns, or keep the language model's activations alone with "
                "names_filter."
            )
        found = [(owners == sample).nonzero()[:, 0] for sample in samples]
        return torch.cat([owners.new_empty(0), *found])

    def of(self, name: str, n_rows: int, n_positions: int) -> Owners:
        """The number of each position's sample, on the CPU.

        Args:
            name: A hook name.
            n_rows: Size of the first axis of the activations there.
            n_positions: Size of their second axis.

        Returns:
            `NO_SAMPLE` where a position is nobody's, `SOME_SAMPLE` where it is not known whose.

        Raises:
            ValueError: Activations of this shape are not what the batch gives at this point.
        """
        if self.images is not None and self._row_owners(name) is self.images:
            raise ValueError(
                f"expected a hook point whose positions are known, but at {name!r} they are those "
                "of all tiles of an image, with what fills them up: leave it out."
            )
        key = (name if name in self.patches else _kind(name), n_rows, n_positions)
        if key not in self._known:
            rows, real = self._rows(name, n_rows), self._real_positions(name, n_positions)
            if real is None:
                real = torch.ones(len(rows), n_positions, dtype=torch.bool)
            if len(rows) != len(real) or real.shape != (n_rows, n_positions):
                raise ValueError(
                    f"expected activations of {len(rows)}x{real.shape[1]} rows and positions at "
                    f"{name!r} from this batch of {self.n_samples} samples, got "
                    f"{n_rows}x{n_positions}: whose they are is not known. Run one sample at a "
                    "time (batch_size=1) or leave it out."
                )
            self._known[key] = rows[:, None].where(real, NO_SAMPLE)
        return self._known[key]

    def _rows(self, name: str, n_rows: int) -> Rows:
        if rows_are_samples(name):
            return torch.arange(self.n_samples)
        owners = self._row_owners(name)
        if owners is None:
            owners = torch.full((n_rows,), 0 if self.n_samples == 1 else SOME_SAMPLE)
        return owners

    def _row_owners(self, name: str) -> Rows | None:
        if self.images is not None and name.endswith(PATTERN_SITES):
            return self.images
        return self.tiles if name.endswith(_READ) and self.tiles is not None else self.pictures

    def _real_positions(self, name: str, width: int) -> Mask | None:
        """Which positions of each row are real; None for all."""
        part = part_of(name)
        if name in self.patches:
            return self.patches[name]
        if name.endswith(_READ):
            return self.read if part == "decoder" else None
        if part in self.real:
            return self.real[part]
        if part == "qformer":
            return self._of_queries(name, width)
        fitting = (counts for counts, longest in self.lengths if longest == width)
        counts = next(fitting, None)
        if counts is None and self.lengths:
            counts, width = self.lengths[0]
        return None if counts is None else torch.arange(width) < counts[:, None]

    def _of_queries(self, name: str, width: int) -> Mask | None:
        """Learnt queries, and behind them the text that InstructBLIP's Q-Former reads too."""
        text = self.query_text
        if text is None or width == self.n_queries:
            return None
        n_queries = 0 if ".text_mlp." in name else self.n_queries or 0
        return torch.cat([torch.ones(len(text), n_queries, dtype=torch.bool), text], dim=1)


def _kind(name: str) -> str:
    """Hook points whose positions are the same ones if there are as many of them."""
    rest = next((end for end in (*_READ, *PATTERN_SITES) if name.endswith(end)), "")
    return part_of(name) + (".text_mlp" if ".text_mlp." in name else rest)


def _sequences(arguments: Mapping[str, Any], real: Mask | None) -> dict[str, Mask]:
    """By part that has a sequence of text, the positions that hold anything."""
    alone = _pictures_alone(arguments)
    if alone is not None:
        return {"pictures": alone}
    decodes = arguments.get("decoder_input_ids") is not None
    real = _filled(arguments, "decoder_" if decodes else "") if real is None else real.cpu()
    if decodes:
        return {"decoder": real, "encoder": _filled(arguments, "")}
    return {"language_model": real}


def _pictures_alone(arguments: Mapping[str, Any]) -> Mask | None:
    """Of a tower alone, a row for each picture; its real patches where pictures are filled up."""
    if any(arguments.get(name) is not None for name in TOKENS):
        return None
    mask, pixels = arguments.get("pixel_attention_mask"), arguments["pixel_values"]
    return torch.ones(len(pixels), 1, dtype=torch.bool) if mask is None else mask.bool().cpu()


def _filled(arguments: Mapping[str, Any], prefix: str) -> Mask:
    """What a mask leaves of a sequence; all of it where there is none, or one of pairs."""
    names = ("attention_mask", "input_ids", "inputs_embeds")
    mask, *given = (arguments.get(f"{prefix}{name}") for name in names)
    shape = next(tensor.shape[:2] for tensor in given if tensor is not None)
    if mask is None or mask.ndim != 2:
        return torch.ones(shape, dtype=torch.bool)
    return mask[:, -shape[1] :].bool().cpu()  # of a mask that counts a key-value cache, the end


def _without_first(mask: Mask, keep: bool) -> Mask:
    return mask if keep else mask & (mask.cumsum(1) > 1)


def _images(arguments: Mapping[str, Any]) -> Rows | None:
    """The sample of each image of Mllama; an image that is not there is nobody's."""
    ids = arguments.get("aspect_ratio_ids")
    if ids is None:
        return None
    return torch.arange(len(ids))[:, None].where(ids.cpu() > 0, NO_SAMPLE).flatten()


def _tiles(arguments: Mapping[str, Any]) -> Rows | None:
    """The sample of each tile that Mllama's images can have; nobody's where they have it not."""
    images = _images(arguments)
    if images is None:
        return None
    used = arguments["aspect_ratio_mask"].cpu().bool().flatten(0, 1)
    return images[:, None].where(used, NO_SAMPLE).flatten()


def _pictures(
    arguments: Mapping[str, Any], token_maps: Sequence[TokenMap] | None, *, n_samples: int
) -> Rows | None:
    """The sample of each picture, or of each sound, in the order in which the encoder sees them."""
    images = _images(arguments)
    if images is not None:  # one that is not there has a tile all the same
        n_tiles = arguments["aspect_ratio_mask"].cpu().sum(-1).flatten()
        return images.repeat_interleave(n_tiles)
    if _pictures_alone(arguments) is not None:
        return torch.arange(n_samples)
    if token_maps is None:
        return None
    counts = [sum(len(y.views) for y in one.layouts) + len(one.audios) for one in token_maps]
    return torch.arange(n_samples).repeat_interleave(torch.tensor(counts, dtype=torch.long))


def _lengths(
    arguments: Mapping[str, Any], token_maps: Sequence[TokenMap] | None
) -> list[tuple[Rows, int]]:
    alone = _pictures_alone(arguments)
    if alone is not None:
        return [] if alone.all() else [(alone.sum(1), alone.shape[1])]
    sounds = arguments.get("feature_attention_mask")
    if sounds is not None:
        # A convolution halves a sound's frames, and a pooling does so again.
        sizes = torch.cat([sounds.cpu().sum(1), torch.tensor([sounds.shape[1]])])
        halved = (sizes - 1) // 2 + 1
        pooled = (halved - 2) // 2 + 1
        return [(counts[:-1], int(counts[-1])) for counts in (halved, pooled)]
    layouts = [y for one in token_maps or () for y in one.layouts for _ in y.views]
    patches = [layout.n_positions - layout.n_class for layout in layouts]
    if len(set(patches)) < 2:
        return []
    # Pictures of different sizes: patches in front of the merging, tokens behind it.
    tokens = [sum(grid.rows * grid.cols for grid in layout.grids) for layout in layouts]
    return [(torch.tensor(counts), max(counts)) for counts in (patches, tokens)]


def _renumbered(owners: Rows | None, samples: Sequence[int]) -> Rows | None:
    """The owners of the rows of some samples, by their place among these samples."""
    if owners is None:
        return None
    counts = [int((owners == sample).sum()) for sample in samples]
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.long))

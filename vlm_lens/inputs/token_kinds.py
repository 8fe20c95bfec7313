"""What each position of a sample's token sequence is: a piece of an image, text, padding."""

import operator
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from vlm_lens.counted import counted
from vlm_lens.geometry import AudioLayout, ImageLayout

Modality = Literal["image", "audio", "text", "special", "padding"]
Role = Literal["prompt", "answer"]
Kind = Literal["image", "audio", "text", "special", "padding", "prompt", "answer"]
NO_VIEW = -1
NO_CELL = (-1, -1)


@dataclass(frozen=True, repr=False)
class PositionKinds:
    """The part of a `TokenMap` that says what each position is. `TokenMap` lists the attributes."""

    tokens: list[str]
    modality: list[Modality]
    role: list[Role]
    image_index: list[int]
    layouts: list[ImageLayout]
    special_tokens: frozenset[str]
    audios: list[AudioLayout] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = ("tokens", "modality", "role", "image_index")
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected one entry per position in every list, got {lengths}")
        for name, allowed in (("modality", get_args(Modality)), ("role", get_args(Role))):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown:
                raise ValueError(f"unknown {name} {unknown}: expected {list(allowed)}")
        self._check_counts()

    def _check_counts(self) -> None:
        for pos, (modality, index) in enumerate(zip(self.modality, self.image_index, strict=True)):
            if not (0 <= index < len(self.layouts) if modality == "image" else index == -1):
                raise ValueError(
                    f"position {pos} is {modality} with image_index {index}: expected -1 on all "
                    f"but image positions, and one of the {len(self.layouts)} images on those"
                )
        counts = Counter(self.image_index)
        for index, layout in enumerate(self.layouts):
            if counts[index] != len(layout.tokens):
                raise ValueError(
                    f"image {index} has {counts[index]} positions, but its layout has "
                    f"{len(layout.tokens)} tokens: expected one position for each"
                )
        spans = sum(len(audio.spans) for audio in self.audios)
        if self.modality.count("audio") != spans:
            raise ValueError(
                f"expected one audio position for each of the {spans} tokens of "
                f"{counted(len(self.audios), 'sound')}, got {self.modality.count('audio')}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        counts = Counter(self.modality)
        parts = [f"{counts[m]} {m}{self._grid_note(m)}" for m in get_args(Modality) if counts[m]]
        answer = self.role.count("answer")
        note = f"; {answer} answer" if answer else ""
        return f"TokenMap({len(self)} positions: {', '.join(parts)}{note})"

    def _grid_note(self, modality: str) -> str:
        if modality != "image":
            return ""
        return f" ({', '.join(_shapes(layout) for layout in self.layouts)})"

    @cached_property
    def view_index(self) -> list[int]:
        """Which of its image's views a position shows; -1 where it shows none."""
        return [self._place(pos)[0] for pos in range(len(self))]

    @cached_property
    def cells(self) -> list[tuple[int, int]]:
        """The (row, col) of the patch a position shows, in its view; (-1, -1) where none."""
        return [self._place(pos)[1:] for pos in range(len(self))]

    def _place(self, pos: int) -> tuple[int, int, int]:
        token = self._layout_tokens.get(pos)
        return token if isinstance(token, tuple) else (NO_VIEW, *NO_CELL)

    @cached_property
    def _layout_tokens(self) -> dict:
        """The layout's token of each image position."""
        tokens = [iter(layout.tokens) for layout in self.layouts]
        return {pos: next(tokens[i]) for pos, i in enumerate(self.image_index) if i >= 0}

    def positions(
        self, kind: Kind, *, image: int | None = None, view: int | None = None
    ) -> list[int]:
        """Returns the positions of one kind, in order.

        Args:
            kind: A modality ("image", "audio", "text", "special", "padding") or a role ("prompt",
                "answer"). Padding belongs to neither role.
            image: With "image": only the positions of this one of the sample's images.
            view: With "image": only the positions that show patches of this one of an image's
                views.

        Raises:
            ValueError: There is no such kind, or `image` or `view` came with another kind than
                "image".
            IndexError: There is no such image.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"unknown kind {kind!r} of position: expected one of {get_args(Kind)}")
        for name, value in (("image", image), ("view", view)):
            if value is not None and kind != "image":
                raise ValueError(f"{name}={value} goes with kind 'image' only, not with {kind!r}")
        if image is not None:
            self._layout(image)
        if kind in get_args(Role):
            pairs = zip(self.role, self.modality, strict=True)
            return [
                pos
                for pos, (role, modality) in enumerate(pairs)
                if role == kind and modality != "padding"
            ]
        return [
            pos
            for pos, modality in enumerate(self.modality)
            if modality == kind
            and image in (None, self.image_index[pos])
            and view in (None, self.view_index[pos])
        ]

    def mask(
        self, kind: Kind, *, image: int | None = None, view: int | None = None
    ) -> Bool[Tensor, " pos"]:
        """Returns `positions` as a mask: True at the positions of one kind."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[self.positions(kind, image=image, view=view)] = True
        return mask

    def _absolute(self, pos: int) -> int:
        pos = operator.index(pos)
        if not -len(self) <= pos < len(self):
            raise IndexError(
                f"position {pos} is out of range: the sample has {len(self)} positions, "
                f"0 to {len(self) - 1}, or -{len(self)} to -1 from the end"
            )
        return pos % len(self)

    def _layout(self, image: int) -> ImageLayout:
        if not 0 <= image < len(self.layouts):
            raise IndexError(
                f"there is no image {image}: the sample has "
                f"{counted(len(self.layouts), 'image')}, counted from 0"
            )
        return self.layouts[image]


def _shapes(layout: ImageLayout) -> str:
    """The shapes of an image's grids, equal ones counted: "2x2 + 4x6", or "3 of 4x4"."""
    if not layout.grids:
        return "no grid"
    counts = Counter(f"{grid.rows}x{grid.cols}" for grid in layout.grids)
    return " + ".join(shape if n == 1 else f"{n} of {shape}" for shape, n in counts.items())

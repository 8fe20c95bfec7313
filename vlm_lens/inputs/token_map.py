"""What each position of a sample's token sequence is, and where it lies in the image."""

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from vlm_lens.inputs.geometry import Box, Number, PatchGrid

Modality = Literal["image", "text", "special", "padding"]
Role = Literal["prompt", "answer"]
Kind = Literal["image", "text", "special", "padding", "prompt", "answer"]
Values = Shaped[Tensor, " n"] | Shaped[np.ndarray, " n"] | Sequence[Number]

NO_CELL = (-1, -1)


@dataclass(frozen=True, repr=False)
class TokenMap:
    """One sample's positions: what each one is, and the image patch it shows.

    Its methods take positions as Python lists do: -1 is the last one.

    Attributes:
        tokens: Each position's token as text.
        modality: "image", "text", "special" or "padding" per position.
        role: "prompt" or "answer" per position.
        image_index: Which of the sample's images a position shows; -1 where it shows none.
        cells: The (row, col) of the patch a position shows; (-1, -1) where it shows none. An image
            position without a patch is a class token of the vision tower.
        grids: One patch grid per image.
        special_tokens: The texts of the tokenizer's special tokens, which `extend` needs.

    Raises:
        ValueError: The attributes do not fit each other.

    Example:
        >>> from vlm_lens.inputs.geometry import PixelTransform
        >>> grid = PatchGrid(PixelTransform((200, 100), (32, 16), (0, 0), (32, 16)), patch_size=16)
        >>> token_map = TokenMap(
        ...     tokens=["<s>", "<image>", "<image>", " what"],
        ...     modality=["special", "image", "image", "text"],
        ...     role=["prompt"] * 4,
        ...     image_index=[-1, 0, 0, -1],
        ...     cells=[(-1, -1), (0, 0), (0, 1), (-1, -1)],
        ...     grids=[grid],
        ...     special_tokens=frozenset({"<s>", "</s>"}),
        ... )
        >>> token_map
        TokenMap(4 positions: 2 image (1x2), 1 text, 1 special)
        >>> token_map.positions("image")
        [1, 2]
        >>> token_map.box(2)
        (100.0, 0.0, 200.0, 100.0)
        >>> token_map.position(150, 50)
        2
    """

    tokens: list[str]
    modality: list[Modality]
    role: list[Role]
    image_index: list[int]
    cells: list[tuple[int, int]]
    grids: list[PatchGrid]
    special_tokens: frozenset[str]

    def __post_init__(self) -> None:
        names = ("tokens", "modality", "role", "image_index", "cells")
        lengths = {name: len(getattr(self, name)) for name in names}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected one entry per position in every list, got {lengths}")
        for name, allowed in (("modality", get_args(Modality)), ("role", get_args(Role))):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown:
                raise ValueError(f"unknown {name} {unknown}: expected {list(allowed)}")
        self._check_images()

    def _check_images(self) -> None:
        for pos, (modality, index) in enumerate(zip(self.modality, self.image_index, strict=True)):
            if not (0 <= index < len(self.grids) if modality == "image" else index == -1):
                raise ValueError(
                    f"position {pos} is {modality} with image_index {index}: expected -1 on all "
                    f"but image positions, and one of the {len(self.grids)} images on those"
                )
        for index, grid in enumerate(self.grids):
            shown = [self.cells[pos] for pos in self.positions("image", image=index)]
            raster = [(row, col) for row in range(grid.rows) for col in range(grid.cols)]
            if [cell for cell in shown if cell != NO_CELL] != raster:
                raise ValueError(
                    f"the positions of image {index} must show each patch of its "
                    f"{grid.rows}x{grid.cols} grid once, row by row; got the cells {shown}"
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
        return f" ({', '.join(f'{grid.rows}x{grid.cols}' for grid in self.grids)})"

    def positions(self, kind: Kind, *, image: int | None = None) -> list[int]:
        """Returns the positions of one kind, in order.

        Args:
            kind: A modality ("image", "text", "special", "padding") or a role ("prompt",
                "answer"). Padding belongs to neither role.
            image: With "image": only the positions of this one of the sample's images.

        Raises:
            ValueError: There is no such kind, or `image` came with another kind than "image".
            IndexError: There is no such image.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"unknown kind {kind!r} of position: expected one of {get_args(Kind)}")
        if image is not None:
            if kind != "image":
                raise ValueError(f"image={image} goes with kind 'image' only, not with {kind!r}")
            self._grid(image)
            return [pos for pos, index in enumerate(self.image_index) if index == image]
        if kind in get_args(Modality):
            return [pos for pos, modality in enumerate(self.modality) if modality == kind]
        return [
            pos
            for pos, (role, modality) in enumerate(zip(self.role, self.modality, strict=True))
            if role == kind and modality != "padding"
        ]

    def mask(self, kind: Kind, *, image: int | None = None) -> Bool[Tensor, " pos"]:
        """Returns `positions` as a mask: True at the positions of one kind."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        mask[self.positions(kind, image=image)] = True
        return mask

    def cell(self, pos: int) -> tuple[int, int]:
        """Returns the (row, col) of the patch that an image position shows.

        Raises:
            IndexError: There is no such position.
            ValueError: The position shows no patch.
        """
        pos = self._absolute(pos)
        if self.cells[pos] == NO_CELL:
            raise ValueError(f"position {pos} shows no image patch: {self._describe(pos)}")
        return self.cells[pos]

    def box(self, pos: int) -> Box:
        """Returns where the patch of an image position lies in the original image.

        Returns:
            (x0, y0, x1, y1) in pixels, ends exclusive, clipped to the image; see `PatchGrid.box`.

        Raises:
            IndexError: There is no such position.
            ValueError: The position shows no patch.
        """
        row, col = self.cell(pos)
        return self.grids[self.image_index[pos]].box(row, col)

    def position(self, x: Number, y: Number, *, image: int = 0) -> int | None:
        """Returns the position that shows a point of an original image.

        Args:
            x: Pixels from the left edge; a pixel's centre is at + 0.5.
            y: Pixels from the top edge.
            image: Which of the sample's images.

        Returns:
            The position, or None where the point was cropped away.

        Raises:
            IndexError: There is no such image.
            ValueError: The point lies outside of the image.
        """
        cell = self._grid(image).cell(x, y)
        found = (pos for pos in self.positions("image", image=image) if self.cells[pos] == cell)
        return next(found, None)

    def grid_values(self, values: Values, *, image: int = 0) -> Float[np.ndarray, "rows cols"]:
        """Arranges values per position as the patches of an image.

        Args:
            values: One number per position of the whole sequence, or one per position of that
                image.
            image: Which of the sample's images.

        Raises:
            IndexError: There is no such image.
            ValueError: The values have another length.
        """
        grid = self._grid(image)
        array = _to_numpy(values)
        positions = self.positions("image", image=image)
        if array.shape == (len(self),):
            array = array[positions]
        elif array.shape != (len(positions),):
            raise ValueError(
                f"expected one value per position ({len(self)}) or one per position of image "
                f"{image} ({len(positions)}), got shape {array.shape}"
            )
        shows_patch = [self.cells[pos] != NO_CELL for pos in positions]
        return array[shows_patch].reshape(grid.rows, grid.cols)

    def heatmap(self, values: Values, *, image: int = 0) -> Float[np.ndarray, "height width"]:
        """Spreads values per position over the pixels of an original image.

        Args:
            values: One number per position of the whole sequence, or one per position of that
                image.
            image: Which of the sample's images.

        Returns:
            One number per pixel of the original image, NaN where it was cropped away.

        Raises:
            IndexError: There is no such image.
            ValueError: The values have another length.
        """
        return self._grid(image).heatmap(self.grid_values(values, image=image))

    def extend(self, tokens: Sequence[str]) -> "TokenMap":
        """Returns the map of a longer sequence: this one with answer tokens behind it.

        Args:
            tokens: The texts of the new tokens. Those of the tokenizer's special tokens get
                modality "special", all others "text".
        """
        if isinstance(tokens, str):
            raise TypeError(f"expected a list of tokens, got the str {tokens!r}: put it in a list")
        added = len(tokens)
        kinds: list[Modality] = [
            "special" if token in self.special_tokens else "text" for token in tokens
        ]
        roles: list[Role] = ["answer"] * added
        return replace(
            self,
            tokens=[*self.tokens, *tokens],
            modality=self.modality + kinds,
            role=self.role + roles,
            image_index=self.image_index + [-1] * added,
            cells=self.cells + [NO_CELL] * added,
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per position.

        Returns:
            Columns ``token``, ``modality``, ``role``, ``image``, ``row``, ``col`` (-1 where there
            is none) and ``x0``, ``y0``, ``x1``, ``y1`` in pixels of the original image (NaN where
            there is none); the index is the position.
        """
        boxes = [
            (np.nan,) * 4 if cell == NO_CELL else self.box(pos)
            for pos, cell in enumerate(self.cells)
        ]
        frame = pd.DataFrame(
            {"token": self.tokens, "modality": self.modality, "role": self.role},
            index=pd.RangeIndex(len(self), name="position"),
        )
        frame["image"] = self.image_index
        frame[["row", "col"]] = np.array(self.cells, dtype=np.int64).reshape(-1, 2)
        frame[["x0", "y0", "x1", "y1"]] = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        return frame

    def _absolute(self, pos: int) -> int:
        pos = operator.index(pos)
        if not -len(self) <= pos < len(self):
            raise IndexError(
                f"position {pos} is out of range: the sample has {len(self)} positions, "
                f"0 to {len(self) - 1}, or -{len(self)} to -1 from the end"
            )
        return pos % len(self)

    def _grid(self, image: int) -> PatchGrid:
        if not 0 <= image < len(self.grids):
            raise IndexError(
                f"there is no image {image}: the sample has {len(self.grids)} image(s), counted "
                "from 0"
            )
        return self.grids[image]

    def _describe(self, pos: int) -> str:
        if self.modality[pos] == "image":
            return f"it is a class token of image {self.image_index[pos]}, which shows all of it"
        what = f"it is the {self.modality[pos]} token {self.tokens[pos]!r} of the {self.role[pos]}"
        image_positions = self.positions("image")
        if not image_positions:
            return f"{what}, and the sample has no image"
        return f"{what}; image positions lie from {image_positions[0]} to {image_positions[-1]}"


def _to_numpy(values: Values) -> Float[np.ndarray, "..."]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # unknown to numpy
    array = np.asarray(values)
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)

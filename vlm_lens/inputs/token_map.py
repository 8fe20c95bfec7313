"""What each position of a sample's token sequence is, and where it lies in the image."""

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from vlm_lens.geometry import (
    AudioLayout,
    Box,
    ImageLayout,
    Merge,
    Number,
    PatchGrid,
    merged_heatmap,
)

Modality = Literal["image", "audio", "text", "special", "padding"]
Role = Literal["prompt", "answer"]
Kind = Literal["image", "audio", "text", "special", "padding", "prompt", "answer"]
Values = Shaped[Tensor, " n"] | Shaped[np.ndarray, " n"] | Sequence[Number]
PatchValues = Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."] | Sequence[Number]

NO_VIEW = -1
NO_CELL = (-1, -1)
_PLACELESS = {
    "class": "it is a class token of image {image}, which shows all of it",
    "newline": "it is the newline behind a row of patches of image {image}",
    "query": (
        "it is a query of image {image}, which gathers from all of it: the attention weights of "
        "its cross-attention map it to the image, see TokenMap.through"
    ),
    "cross_attention": (
        "it stands for image {image}, which the text reads by cross-attention: the attention "
        "weights of a position map it to the image, see TokenMap.patch_heatmap"
    ),
}


@dataclass(frozen=True, repr=False)
class TokenMap:
    """One sample's positions: what each one is, and the image patch it shows.

    An image may become several grids of tokens, e.g. one of a thumbnail and one of tiles: these
    are its views, counted from 0. Methods take positions as Python lists do: -1 is the last one.

    Attributes:
        tokens: Each position's token as text.
        modality: "image", "audio", "text", "special" or "padding" per position.
        role: "prompt" or "answer" per position.
        image_index: Which of the sample's images a position shows; -1 where it shows none.
        layouts: One layout per image.
        special_tokens: The texts of the tokenizer's special tokens, which `extend` needs.
        audios: One layout per sound.

    Raises:
        ValueError: The attributes do not fit each other.

    Example:
        >>> from vlm_lens.geometry import PixelTransform
        >>> grid = PatchGrid(PixelTransform((200, 100), (32, 16), (0, 0), (32, 16)), patch_size=16)
        >>> token_map = TokenMap(
        ...     tokens=["<s>", "<image>", "<image>", " what"],
        ...     modality=["special", "image", "image", "text"],
        ...     role=["prompt"] * 4,
        ...     image_index=[-1, 0, 0, -1],
        ...     layouts=[ImageLayout.of([grid], [grid])],
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
                f"{len(self.audios)} sound(s), got {self.modality.count('audio')}"
            )

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

    def grid(self, *, image: int = 0, view: int | None = None) -> PatchGrid:
        """Returns the grid of the patches that an image's positions show.

        Args:
            image: Which of the sample's images.
            view: Which of the image's views; by default the one with the largest patches, which
                shows the whole image.

        Raises:
            IndexError: There is no such image or view.
            ValueError: The positions of the image show no patches.
        """
        return self._layout(image).grids[self._view(image, view)]

    def cell(self, pos: int) -> tuple[int, int]:
        """Returns the (row, col) of the patch that an image position shows, in its view.

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
        return self.grid(image=self.image_index[pos], view=self.view_index[pos]).box(row, col)

    def span(self, pos: int) -> tuple[float, float]:
        """Returns which part of its sound an audio position stands for.

        Returns:
            (start, end) in seconds from the sound's beginning.

        Raises:
            IndexError: There is no such position.
            ValueError: The position is no audio.
        """
        pos = self._absolute(pos)
        if self.modality[pos] != "audio":
            raise ValueError(f"position {pos} is no audio: {self._describe(pos)}")
        spans = [span for audio in self.audios for span in audio.spans]
        return spans[self.modality[:pos].count("audio")]

    def position(
        self, x: Number, y: Number, *, image: int = 0, view: int | None = None
    ) -> int | None:
        """Returns the position that shows a point of an original image.

        Args:
            x: Pixels from the left edge; a pixel's centre is at + 0.5.
            y: Pixels from the top edge.
            image: Which of the sample's images.
            view: Which of the image's views; by default the one with the smallest patches that
                shows the point.

        Returns:
            The position, or None where no view shows the point.

        Raises:
            IndexError: There is no such image or view.
            ValueError: The point lies outside of the image, or the positions of the image show no
                patches.
        """
        layout, one = self._layout(image), self._view(image, view)
        for candidate in layout.by_detail if view is None else [one]:
            cell = layout.grids[candidate].cell(x, y)
            if cell is not None:
                shown = self.positions("image", image=image, view=candidate)
                return next(pos for pos in shown if self.cells[pos] == cell)
        return None

    def grid_values(
        self, values: Values, *, image: int = 0, view: int | None = None
    ) -> Float[np.ndarray, "rows cols"]:
        """Arranges values per position as the patches of one view of an image.

        Args:
            values: One number per position of the whole sequence, or one per position of that
                image.
            image: Which of the sample's images.
            view: Which of the image's views; by default the one with the largest patches, which
                shows the whole image.

        Raises:
            IndexError: There is no such image or view.
            ValueError: The values have another length, or the positions of the image show no
                patches.
        """
        view = self._view(image, view)
        return self._arrange(self._of_image(values, image), image, view)

    def heatmap(
        self, values: Values, *, image: int = 0, merge: Merge = "detail"
    ) -> Float[np.ndarray, "height width"]:
        """Spreads values per position over the pixels of an original image.

        Args:
            values: One number per position of the whole sequence, or one per position of that
                image.
            image: Which of the sample's images.
            merge: What a pixel shows that lies in several views, e.g. in a thumbnail and in a
                tile: with "detail" the value of the view with the smallest patches, with "mean"
                the mean of all.

        Returns:
            One number per pixel of the original image, NaN where no view shows it.

        Raises:
            IndexError: There is no such image.
            ValueError: The values have another length, the positions of the image show no patches,
                or there is no such way to merge.
        """
        self._view(image, None)
        array = self._of_image(values, image)
        grids = self._layout(image).grids
        arranged = [self._arrange(array, image, view) for view in range(len(grids))]
        return merged_heatmap(grids, arranged, merge=merge)

    def patch_box(self, patch: int, *, view: int = 0, image: int = 0) -> Box:
        """Returns where a patch of the encoder lies in the original image.

        The encoder's patches may be smaller than what a position of the language model shows.

        Args:
            patch: Which position of the encoder, class token included; -1 is the last patch.
            view: Which of the pictures that the encoder sees of the image, in the order of
                ``pixel_values``: these are other views than those of the positions.
            image: Which of the sample's images.

        Raises:
            IndexError: There is no such image, view or patch.
        """
        layout = self._layout(image)
        if not 0 <= view < len(layout.views):
            raise IndexError(
                f"there is no view {view}: the encoder sees {len(layout.views)} of image {image}"
            )
        grid, first = layout.views[view], layout.n_class
        index = patch % layout.n_positions - first
        if not -layout.n_positions <= patch < layout.n_positions or index < 0:
            raise IndexError(
                f"there is no patch {patch}: those of the encoder are {first} to "
                f"{layout.n_positions - 1}"
            )
        return grid.box(*divmod(index, grid.cols))

    def patch_heatmap(
        self, values: PatchValues, *, image: int = 0, merge: Merge = "detail"
    ) -> Float[np.ndarray, "height width"]:
        """Spreads values per patch of the encoder over the pixels of an original image.

        Args:
            values: One number per view and patch, [views, patches] or in one row, with or without
                the class token; e.g. a neuron of the encoder, or the attention that a query pays
                to each patch.
            image: Which of the sample's images.
            merge: What a pixel shows that lies in several views; see `heatmap`.

        Returns:
            One number per pixel of the original image, NaN where no view shows it.

        Raises:
            IndexError: There is no such image.
            ValueError: The values have another shape, or there is no such way to merge.
        """
        layout = self._layout(image)
        return merged_heatmap(layout.views, layout.patch_values(_to_numpy(values)), merge=merge)

    def through(
        self,
        values: Values,
        weights: Shaped[Tensor, "queries patches"] | Shaped[np.ndarray, "queries patches"],
        *,
        image: int = 0,
        merge: Merge = "detail",
    ) -> Float[np.ndarray, "height width"]:
        """Spreads values per query over an original image, as the queries attend to it.

        Each query hands its value to the patches in proportion to its attention. That is one way
        to give a query a place, which it does not have by itself.

        Args:
            values: One number per position of the whole sequence, or one per query.
            weights: The attention weights of each query to the encoder's patches, e.g. the mean
                over the heads of a Q-Former's cross-attention.
            image: Which of the sample's images.
            merge: What a pixel shows that lies in several views; see `heatmap`.

        Returns:
            One number per pixel of the original image, NaN where no view shows it.

        Raises:
            IndexError: There is no such image.
            ValueError: Values or weights have another shape, or there is no such way to merge.
        """
        array, table = self._of_image(values, image), _to_numpy(weights)
        if table.ndim != 2 or len(table) != len(array):
            raise ValueError(
                f"expected weights of {len(array)} queries (rows) to the encoder's patches, got an "
                f"array of shape {table.shape}"
            )
        return self.patch_heatmap(array @ table, image=image, merge=merge)

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
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Returns one row per position.

        Returns:
            Columns ``token``, ``modality``, ``role``, ``image``, ``view``, ``row``, ``col`` (-1
            where there is none) and ``x0``, ``y0``, ``x1``, ``y1`` in pixels of the original image
            (NaN where there is none); the index is the position. With sounds also ``start`` and
            ``end`` in seconds.
        """
        boxes = [
            (np.nan,) * 4 if cell == NO_CELL else self.box(pos)
            for pos, cell in enumerate(self.cells)
        ]
        frame = pd.DataFrame(
            {"token": self.tokens, "modality": self.modality, "role": self.role},
            index=pd.RangeIndex(len(self), name="position"),
        )
        frame["image"], frame["view"] = self.image_index, self.view_index
        frame[["row", "col"]] = np.array(self.cells, dtype=np.int64).reshape(-1, 2)
        frame[["x0", "y0", "x1", "y1"]] = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        if self.audios:
            spans = [span for audio in self.audios for span in audio.spans]
            frame.loc[frame["modality"] == "audio", ["start", "end"]] = spans
        return frame

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
                f"there is no image {image}: the sample has {len(self.layouts)} image(s), counted "
                "from 0"
            )
        return self.layouts[image]

    def _view(self, image: int, view: int | None) -> int:
        layout = self._layout(image)
        if view is None or not layout.grids:
            return layout.overview
        if not 0 <= view < len(layout.grids):
            raise IndexError(
                f"there is no view {view}: image {image} has {len(layout.grids)} view(s), counted "
                "from 0"
            )
        return view

    def _of_image(self, values: Values, image: int) -> Float[np.ndarray, " tokens"]:
        """The values at the positions of one image."""
        array, n_tokens = _to_numpy(values), len(self._layout(image).tokens)
        if array.shape == (len(self),):
            return array[self.positions("image", image=image)]
        if array.shape != (n_tokens,):
            raise ValueError(
                f"expected one value per position ({len(self)}) or one per position of image "
                f"{image} ({n_tokens}), got shape {array.shape}"
            )
        return array

    def _arrange(
        self, values: Float[np.ndarray, " n"], image: int, view: int
    ) -> Float[np.ndarray, "rows cols"]:
        layout = self._layout(image)
        grid = layout.grids[view]
        # Every layout lists the patches of a view row by row.
        shows = [isinstance(token, tuple) and token[0] == view for token in layout.tokens]
        return values[shows].reshape(grid.rows, grid.cols)

    def _describe(self, pos: int) -> str:
        if self.modality[pos] == "image":
            token = self._layout_tokens[pos]
            image = self.image_index[pos]
            if isinstance(token, tuple):
                return f"it shows a patch of image {image}"
            return _PLACELESS[token].format(image=image)
        if self.modality[pos] == "audio":
            return "it is audio, which has a time and no place: see TokenMap.span"
        what = f"it is the {self.modality[pos]} token {self.tokens[pos]!r} of the {self.role[pos]}"
        image_positions = self.positions("image")
        if not image_positions:
            return f"{what}, and the sample has no image"
        return f"{what}; image positions lie from {image_positions[0]} to {image_positions[-1]}"


def _shapes(layout: ImageLayout) -> str:
    """The shapes of an image's grids, equal ones counted: "2x2 + 4x6", or "3 of 4x4"."""
    if not layout.grids:
        return "no grid"
    counts = Counter(f"{grid.rows}x{grid.cols}" for grid in layout.grids)
    return " + ".join(shape if n == 1 else f"{n} of {shape}" for shape, n in counts.items())


def _to_numpy(values: PatchValues) -> Float[np.ndarray, "..."]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # unknown to numpy
    array = np.asarray(values)
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)

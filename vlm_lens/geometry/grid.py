"""The patches of an image as rows and columns, and where they lie in the original image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped

from vlm_lens.geometry.transform import Box, Number, PixelTransform

Spans = tuple[tuple[Number, Number], ...]
Merge = Literal["detail", "mean"]


@dataclass(frozen=True)
class PatchGrid:
    """The patches of one image, as rows and columns, and where they lie in the original image.

    Parts of the original image may lie outside of every patch: what the crop cut off, and what is
    left over where the processed size is no multiple of the patch size. Patches may also lie
    outside of the image, in the padding around it: a patch partly in it has a box clipped to the
    image, one wholly in it an empty box (zero width or height) at the image's border.

    Attributes:
        transform: How processed pixels map to the original image.
        patch_size: Edge of a patch in processed pixels.
        spans: Where the patches do not lie side by side from the top left corner on: the (start,
            end) of every column and of every row, in processed pixels. Tiles that are no multiple
            of the patch size leave gaps between them.

    Example:
        >>> transform = PixelTransform((200, 100), (64, 32), (16, 0), (32, 32))
        >>> grid = PatchGrid(transform, patch_size=16)
        >>> grid.box(0, 1)
        (100.0, 0.0, 150.0, 50.0)
        >>> grid.cell(120, 20)
        (0, 1)
        >>> grid.heatmap(np.array([[1.0, 2.0], [3.0, 4.0]])).shape
        (100, 200)
    """

    transform: PixelTransform
    patch_size: int
    spans: tuple[Spans, Spans] | None = None

    @property
    def rows(self) -> int:
        """Number of patch rows."""
        return self._count(axis=1)

    @property
    def cols(self) -> int:
        """Number of patch columns."""
        return self._count(axis=0)

    @property
    def visible(self) -> Box:
        """(x0, y0, x1, y1): the part of the original image that the patches cover."""
        if not self.rows or not self.cols:
            return 0.0, 0.0, 0.0, 0.0
        (x0, _), (_, x1) = self._x_spans[0], self._x_spans[-1]
        (y0, _), (_, y1) = self._y_spans[0], self._y_spans[-1]
        return float(x0), float(y0), float(x1), float(y1)

    @property
    def cell_area(self) -> float:
        """How many pixels of the original image a patch stands for, padding included."""
        edges = [np.diff(self._processed_spans(axis), axis=1).mean() for axis in (0, 1)]
        transform = self.transform
        scales = [
            original / resized
            for original, resized in zip(
                transform.original_size, transform.resized_size, strict=True
            )
        ]
        return float(np.prod(edges) * np.prod(scales))

    def box(self, row: int, col: int) -> Box:
        """Returns where a patch lies in the original image.

        Args:
            row: 0 is the top row.
            col: 0 is the left column.

        Returns:
            (x0, y0, x1, y1) in pixels of the original image, ends exclusive, clipped to the image.

        Raises:
            IndexError: There is no such row or column.
        """
        if not (0 <= row < self.rows and 0 <= col < self.cols):
            raise IndexError(
                f"there is no patch in row {row}, column {col}: the grid has {self.rows} rows and "
                f"{self.cols} columns, counted from 0"
            )
        (x0, x1), (y0, y1) = self._x_spans[col], self._y_spans[row]
        return float(x0), float(y0), float(x1), float(y1)

    def cell(self, x: Number, y: Number) -> tuple[int, int] | None:
        """Returns the (row, col) of the patch that shows a point, None where none does.

        Args:
            x: Pixels from the left edge of the original image; a pixel's centre is at + 0.5.
            y: Pixels from its top edge.

        Raises:
            ValueError: The point lies outside of the image.
        """
        width, height = self.transform.original_size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f"the point x={x}, y={y} lies outside of the image, which is {width} pixels wide "
                f"and {height} high"
            )
        row = int(_span_of(self._y_spans, np.asarray([y]))[0])
        col = int(_span_of(self._x_spans, np.asarray([x]))[0])
        return (row, col) if row >= 0 and col >= 0 else None

    def heatmap(self, values: Shaped[np.ndarray, "rows cols"]) -> Float[np.ndarray, "height width"]:
        """Spreads one value per patch over the pixels of the original image.

        A pixel takes the value of the patch that its centre lies in.

        Args:
            values: One number per patch.

        Returns:
            One number per pixel, NaN where no patch shows the image; float64 for float64 and
            integer values, else float32.

        Raises:
            ValueError: The values do not have the grid's shape.
        """
        if values.shape != (self.rows, self.cols):
            raise ValueError(
                f"expected {self.rows} rows and {self.cols} columns of values, one per patch, got "
                f"an array of shape {values.shape}"
            )
        width, height = self.transform.original_size
        rows = _span_of(self._y_spans, np.arange(height) + 0.5)
        cols = _span_of(self._x_spans, np.arange(width) + 0.5)
        seen_y, seen_x = np.flatnonzero(rows >= 0), np.flatnonzero(cols >= 0)
        heat = np.full((height, width), np.nan, dtype=np.result_type(values.dtype, np.float32))
        heat[np.ix_(seen_y, seen_x)] = values[np.ix_(rows[seen_y], cols[seen_x])]
        return heat

    @cached_property
    def _x_spans(self) -> Float64[np.ndarray, "cols 2"]:
        return self._original_spans(axis=0)

    @cached_property
    def _y_spans(self) -> Float64[np.ndarray, "rows 2"]:
        return self._original_spans(axis=1)

    def _count(self, *, axis: int) -> int:
        if self.spans is not None:
            return len(self.spans[axis])
        return self.transform.processed_size[axis] // self.patch_size

    def _processed_spans(self, axis: int) -> Float64[np.ndarray, "patches 2"]:
        if self.spans is not None:
            return np.array(self.spans[axis], dtype=np.float64).reshape(-1, 2)
        starts = np.arange(self._count(axis=axis), dtype=np.float64) * self.patch_size
        return np.stack([starts, starts + self.patch_size], axis=1)

    def _original_spans(self, *, axis: int) -> Float64[np.ndarray, "patches 2"]:
        in_resized = self._processed_spans(axis) + self.transform.crop_offset[axis]
        length = self.transform.original_size[axis]
        return np.clip(in_resized * length / self.transform.resized_size[axis], 0.0, float(length))


def merged_heatmap(
    grids: Sequence[PatchGrid],
    values: Sequence[Shaped[np.ndarray, "_ _"]],
    *,
    merge: Merge = "detail",
) -> Float[np.ndarray, "height width"]:
    """Spreads the values of several grids over the pixels of the image that they all show.

    Args:
        grids: Grids of one image, e.g. a thumbnail and tiles.
        values: For each grid one number per patch. NaN counts as not shown.
        merge: What a pixel shows that lies in several grids: with "detail" the value of the grid
            with the smallest patches, with "mean" the mean of all.

    Returns:
        One number per pixel, NaN where no grid shows the image.

    Raises:
        ValueError: There is no such way to merge, or values do not have their grid's shape.

    Example:
        >>> whole = PatchGrid(PixelTransform((4, 2), (2, 1), (0, 0), (2, 1)), patch_size=1)
        >>> right = PatchGrid(PixelTransform((4, 2), (4, 2), (2, 0), (2, 2)), patch_size=1)
        >>> values = [np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])]
        >>> merged_heatmap([whole, right], values).tolist()
        [[1.0, 1.0, 3.0, 4.0], [1.0, 1.0, 5.0, 6.0]]
        >>> merged_heatmap([whole, right], values, merge="mean").tolist()
        [[1.0, 1.0, 2.5, 3.0], [1.0, 1.0, 3.5, 4.0]]
    """
    if merge not in ("detail", "mean"):
        raise ValueError(f"unknown merge {merge!r}: expected 'detail' or 'mean'")
    pairs = sorted(zip(grids, values, strict=True), key=lambda pair: -pair[0].cell_area)
    heat = pairs[0][0].heatmap(pairs[0][1])
    count = (~np.isnan(heat)).astype(heat.dtype)
    for grid, array in pairs[1:]:
        layer = grid.heatmap(array)
        shown = ~np.isnan(layer)
        if merge == "detail":
            heat[shown] = layer[shown]
            continue
        heat[shown] = np.where(count[shown] > 0, heat[shown], 0) + layer[shown]
        count += shown
    return heat if merge == "detail" else heat / np.maximum(count, 1)


def _span_of(
    spans: Float64[np.ndarray, "patches 2"], values: Shaped[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Index of the half-open span each value lies in, -1 where it lies in none."""
    index = np.searchsorted(spans[:, 0], values, side="right") - 1
    inside = (index >= 0) & (values < spans[np.maximum(index, 0), 1])
    return np.where(inside, index, -1)

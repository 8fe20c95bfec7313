"""Where each image patch of a model lies in the original image: pure functions on numbers.

All coordinates are continuous, in pixels, from the top left corner, x before y: the pixel in column
``x`` and row ``y`` covers ``[x, x + 1) x [y, y + 1)`` and has its centre at ``(x + 0.5, y + 0.5)``.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped

Size = tuple[int, int]
Number = int | float
Box = tuple[Number, Number, Number, Number]


@dataclass(frozen=True)
class PixelTransform:
    """How the pixels that the vision tower sees map to the original image.

    The original image is resized, and a window is cut from the resized one.

    Attributes:
        original_size: (width, height) of the original image.
        resized_size: (width, height) after resizing.
        crop_offset: (left, top) of the window in the resized image. Negative where the window is
            larger than the resized image, which then has padding around it.
        processed_size: (width, height) of the window, the size of ``pixel_values``.

    Example:
        >>> transform = PixelTransform((200, 100), (64, 32), (16, 0), (32, 32))
        >>> transform.to_original((0, 0, 32, 32))
        (50.0, 0.0, 150.0, 100.0)
        >>> transform.to_processed((100, 50))
        (16.0, 16.0)
    """

    original_size: Size
    resized_size: Size
    crop_offset: tuple[int, int]
    processed_size: Size

    def to_original(self, box: Box) -> Box:
        """Maps a box of the processed image to the original one.

        Args:
            box: (x0, y0, x1, y1) in pixels of the processed image.

        Returns:
            (x0, y0, x1, y1) in pixels of the original image. Padding lies outside of it: such
            coordinates are negative or beyond its size.
        """
        x0, y0, x1, y1 = box
        return (
            self._to_original(x0, axis=0),
            self._to_original(y0, axis=1),
            self._to_original(x1, axis=0),
            self._to_original(y1, axis=1),
        )

    def to_processed(self, point: tuple[Number, Number]) -> tuple[Number, Number]:
        """Maps a point (x, y) of the original image to the processed one, in its pixels.

        A point that was cropped away comes out negative or beyond the processed size.
        """
        return self._to_processed(point[0], axis=0), self._to_processed(point[1], axis=1)

    def _to_original(self, value: Number, *, axis: int) -> Number:
        # Multiplied before divided: whole results then come out whole.
        in_resized = value + self.crop_offset[axis]
        return in_resized * self.original_size[axis] / self.resized_size[axis]

    def _to_processed(self, value: Number, *, axis: int) -> Number:
        in_resized = value * self.resized_size[axis] / self.original_size[axis]
        return in_resized - self.crop_offset[axis]


def pixel_transform(original_size: Size, image_processor: Any) -> PixelTransform:
    """Works out what an image processor does to an image of a given size.

    Args:
        original_size: (width, height) of the image.
        image_processor: A Hugging Face image processor. Read are its ``do_resize`` and ``size``
            (``shortest_edge``, or ``height`` and ``width``), ``do_center_crop`` and ``crop_size``,
            ``do_pad`` and ``backend``.

    Raises:
        ValueError: The processor resizes or pads in another way.

    Example:
        >>> from transformers import CLIPImageProcessorPil
        >>> pixel_transform((640, 480), CLIPImageProcessorPil())
        PixelTransform(original_size=(640, 480), resized_size=(298, 224), crop_offset=(37, 0), \
processed_size=(224, 224))
    """
    if getattr(image_processor, "do_pad", None):
        raise ValueError(
            f"{type(image_processor).__name__} pads its images (do_pad=True), which is not "
            "supported: use an image processor that resizes and crops, as CLIP's or SigLIP's"
        )
    resized = original_size
    if getattr(image_processor, "do_resize", None):
        resized = _resized_size(original_size, image_processor)
    if not getattr(image_processor, "do_center_crop", None):
        return PixelTransform(original_size, resized, (0, 0), resized)
    crop = dict(image_processor.crop_size)
    window = (int(crop["width"]), int(crop["height"]))
    offset = tuple(
        _crop_start(length, cut, image_processor)
        for length, cut in zip(resized, window, strict=True)
    )
    return PixelTransform(original_size, resized, (offset[0], offset[1]), window)


def _resized_size(original_size: Size, image_processor: Any) -> Size:
    size = {name: int(value) for name, value in dict(image_processor.size).items()}
    if size.keys() == {"height", "width"}:
        return size["width"], size["height"]
    if size.keys() == {"shortest_edge"}:
        width, height = original_size
        short, long = min(original_size), max(original_size)
        new_short, new_long = size["shortest_edge"], int(size["shortest_edge"] * long / short)
        return (new_short, new_long) if width <= height else (new_long, new_short)
    raise ValueError(
        f"{type(image_processor).__name__} resizes to {size}, which is not supported: expected "
        "'shortest_edge' alone, or 'height' and 'width'"
    )


def _crop_start(length: int, cut: int, image_processor: Any) -> int:
    spare = length - cut
    # An odd number of padded pixels: Pillow's processors pad one more in front, torchvision's one
    # more behind.
    if getattr(image_processor, "backend", "pil") == "torchvision":
        return int(spare / 2)
    return spare // 2


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

    @property
    def rows(self) -> int:
        """Number of patch rows."""
        return self.transform.processed_size[1] // self.patch_size

    @property
    def cols(self) -> int:
        """Number of patch columns."""
        return self.transform.processed_size[0] // self.patch_size

    @property
    def visible(self) -> Box:
        """(x0, y0, x1, y1): the part of the original image that the patches cover."""
        x, y = self._x_edges, self._y_edges
        return float(x[0]), float(y[0]), float(x[-1]), float(y[-1])

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
        x, y = self._x_edges, self._y_edges
        return float(x[col]), float(y[row]), float(x[col + 1]), float(y[row + 1])

    def cell(self, x: Number, y: Number) -> tuple[int, int] | None:
        """Returns the (row, col) of the patch that shows a point, None where it was cropped away.

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
        row = int(_interval(self._y_edges, np.asarray([y]))[0])
        col = int(_interval(self._x_edges, np.asarray([x]))[0])
        return (row, col) if 0 <= row < self.rows and 0 <= col < self.cols else None

    def heatmap(self, values: Shaped[np.ndarray, "rows cols"]) -> Float[np.ndarray, "height width"]:
        """Spreads one value per patch over the pixels of the original image.

        A pixel takes the value of the patch that its centre lies in.

        Args:
            values: One number per patch.

        Returns:
            One number per pixel, NaN where the image was cropped away; float64 for float64 and
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
        rows = _interval(self._y_edges, np.arange(height) + 0.5)
        cols = _interval(self._x_edges, np.arange(width) + 0.5)
        seen_y = np.flatnonzero((rows >= 0) & (rows < self.rows))
        seen_x = np.flatnonzero((cols >= 0) & (cols < self.cols))
        heat = np.full((height, width), np.nan, dtype=np.result_type(values.dtype, np.float32))
        heat[np.ix_(seen_y, seen_x)] = values[np.ix_(rows[seen_y], cols[seen_x])]
        return heat

    @cached_property
    def _x_edges(self) -> Float64[np.ndarray, " edges"]:
        return self._edges(self.cols, axis=0)

    @cached_property
    def _y_edges(self) -> Float64[np.ndarray, " edges"]:
        return self._edges(self.rows, axis=1)

    def _edges(self, count: int, *, axis: int) -> Float64[np.ndarray, " edges"]:
        in_resized = np.arange(count + 1) * self.patch_size + self.transform.crop_offset[axis]
        length = self.transform.original_size[axis]
        edges = in_resized * length / self.transform.resized_size[axis]
        return np.clip(edges, 0.0, float(length))


def _interval(
    edges: Float64[np.ndarray, " edges"], values: Shaped[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Index of the half-open interval each value lies in; -1 before the first, past the last."""
    return np.searchsorted(edges, values, side="right") - 1

"""What an image becomes: the views that the encoder sees, and the tokens of the language model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped, UInt8

from vlm_lens.counted import counted
from vlm_lens.geometry.audio import AudioLayout
from vlm_lens.geometry.grid import PatchGrid
from vlm_lens.geometry.transform import Size

Placeless = Literal["class", "newline", "query", "cross_attention"]
Token = tuple[int, int, int] | Placeless


@dataclass(frozen=True)
class ImageLayout:
    """Where everything lies that one image becomes.

    Attributes:
        views: What the encoder sees, in the order of ``pixel_values``: tiles, crops and thumbnails,
            each as the grid of its encoder patches. All have the same shape.
        n_class: How many class tokens the encoder has in front of each view's patches.
        grids: The grids of language-model tokens. Their patches may be larger than the encoder's.
        tokens: The image's positions in the token sequence: the (grid, row, col) of the patch that
            a position shows, or what it is instead: a "class" token, a "newline" behind a row of
            patches, a "query" that gathers from the whole image, or the token of an image that is
            read by "cross_attention".

    Example:
        >>> from vlm_lens.geometry import PixelTransform
        >>> grid = PatchGrid(PixelTransform((200, 100), (32, 16), (0, 0), (32, 16)), patch_size=16)
        >>> layout = ImageLayout.of([grid], [grid], n_class=1)
        >>> layout.tokens
        ((0, 0, 0), (0, 0, 1))
        >>> layout.n_positions
        3
    """

    views: tuple[PatchGrid, ...]
    n_class: int
    grids: tuple[PatchGrid, ...]
    tokens: tuple[Token, ...]

    @classmethod
    def of(
        cls,
        views: Iterable[PatchGrid],
        grids: Iterable[PatchGrid] = (),
        *,
        n_class: int = 0,
        tokens: Iterable[Token] | None = None,
    ) -> "ImageLayout":
        """Returns the layout of an image; by default its tokens are all grids' patches in order.

        Args:
            views: The grids of encoder patches.
            grids: The grids of language-model tokens.
            n_class: How many class tokens the encoder has for each view.
            tokens: The image's positions, where they are not each grid's patches, row by row.
        """
        views, grids = tuple(views), tuple(grids)
        if tokens is None:
            tokens = [token for index, grid in enumerate(grids) for token in raster(index, grid)]
        return cls(views, n_class, grids, tuple(tokens))

    @property
    def n_positions(self) -> int:
        """How many positions the encoder has for each view: class tokens, then patches."""
        return self.n_class + self.views[0].rows * self.views[0].cols

    @property
    def original_size(self) -> Size:
        """(width, height) of the original image."""
        return self.views[0].transform.original_size

    @property
    def by_detail(self) -> list[int]:
        """The indices of the grids, from the smallest patches to the largest."""
        return sorted(range(len(self.grids)), key=lambda index: self.grids[index].cell_area)

    @property
    def overview(self) -> int:
        """The index of the grid with the largest patches: the one that shows the whole image.

        Raises:
            ValueError: The tokens of the image have no place.
        """
        if not self.grids:
            raise ValueError(
                "the tokens of this image lie on no grid: they are queries, or are read by "
                "cross-attention; attention weights map them to the encoder's patches"
            )
        return self.by_detail[-1]

    def patch_values(
        self, values: Shaped[np.ndarray, "..."]
    ) -> list[Shaped[np.ndarray, "rows cols"]]:
        """Arranges values per encoder position as the patches of each view.

        Args:
            values: One number per view and patch, with or without the class token, of shape
                [views, patches] or in one row. Further values behind them are padding.

        Raises:
            ValueError: There are too few values.
        """
        n_views, n_patches = len(self.views), self.n_positions - self.n_class
        table = self._table(values)
        if table.ndim != 2 or table.shape[0] < n_views or table.shape[1] < n_patches:
            raise ValueError(
                f"expected {counted(n_views, 'view')} of {n_patches} values, one per patch of the "
                f"encoder, or of {self.n_positions} with its class token, got an array of shape "
                f"{values.shape}"
            )
        start = self.n_class if table.shape[1] > n_patches else 0
        shown = table[:n_views, start : start + n_patches]
        return [row.reshape(self.views[0].rows, self.views[0].cols) for row in shown]

    def _table(self, values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        if values.ndim != 1:
            return values
        for width in (self.n_positions, self.n_positions - self.n_class):
            if values.size % width == 0:
                return values.reshape(-1, width)
        return values[None]


def raster(index: int, grid: PatchGrid) -> list[Token]:
    """Returns the tokens that show a grid's patches, row by row.

    Args:
        index: Which of the image's grids it is.
        grid: The grid.
    """
    return [(index, row, col) for row in range(grid.rows) for col in range(grid.cols)]


MediaLayout = ImageLayout | AudioLayout
# Each family of models has such a function. It says what becomes of an image of (width, height)
# that is one of n_images of a sample: (processor, config, size, *, n_images=1); or what becomes of
# a sound: (processor, config, n_samples).
LayoutFunction = Callable[..., MediaLayout]


def square(side: Any) -> int:
    """Returns a side that configs write as a number or as a pair of equal ones.

    Raises:
        ValueError: The pair's numbers differ.
    """
    if isinstance(side, list | tuple):
        if side[0] != side[1]:
            raise ValueError(f"expected square patches, got {side}: this model is not supported")
        return int(side[0])
    return int(side)


def blank(size: Size) -> UInt8[np.ndarray, "1 height width"]:
    """Returns an image that takes no memory, for Hugging Face's functions that read its size."""
    width, height = size
    return np.broadcast_to(np.uint8(0), (1, height, width))

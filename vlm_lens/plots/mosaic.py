"""An image cut into the pieces that positions or patches show, tiles and thumbnails included.

A heat map with a value per pixel is large and forgets what a pixel belongs to. A mosaic has as many
cells as the borders of all patches make, and says for each cell which position it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from vlm_lens.geometry import PatchGrid
from vlm_lens.inputs.token_map import TokenMap

NOTHING = -1
"""The entry of a cell that shows none."""

_SAME = 6
"""Borders are the same where they are in so many decimals of a pixel."""


@dataclass(frozen=True, eq=False)
class Mosaic:
    """The pieces of an image.

    Attributes:
        x: The cells' borders from left to right, in pixels of the original image.
        y: Likewise from top to bottom.
        entries: Which position or patch a cell shows, by its place among the values; -1 for none.
            Where several views show a place, it is the one with the smallest patches.

    Example:
        >>> from vlm_lens.geometry import ImageLayout, PixelTransform
        >>> whole = PatchGrid(PixelTransform((4, 2), (2, 1), (0, 0), (2, 1)), patch_size=1)
        >>> token_map = TokenMap(["<image>"] * 2, ["image"] * 2, ["prompt"] * 2, [0, 0],
        ...     [ImageLayout.of([whole], [whole])], frozenset())
        >>> mosaic = Mosaic.of_tokens(token_map)
        >>> mosaic.x.tolist(), mosaic.entries.tolist()
        ([0.0, 2.0, 4.0], [[0, 1]])
        >>> mosaic.spread(np.array([0.5, 0.25])).tolist()
        [[0.5, 0.25]]
    """

    x: Float[np.ndarray, " x_edges"]
    y: Float[np.ndarray, " y_edges"]
    entries: Int[np.ndarray, "rows cols"]

    @classmethod
    def of_tokens(cls, token_map: TokenMap, *, image: int = 0) -> Mosaic:
        """Of the positions of the language model that show an image.

        Raises:
            IndexError: There is no such image.
            ValueError: Its positions show no patches.
        """
        token_map.grid(image=image)  # says what is wrong
        numbers = np.arange(len(token_map))
        grids = token_map.layouts[image].grids
        arranged = [token_map.grid_values(numbers, image=image, view=i) for i in range(len(grids))]
        return cls._cut(grids, [one.astype(np.int64) for one in arranged])

    @classmethod
    def of_patches(
        cls, token_map: TokenMap, n: int, *, image: int = 0, view: int | None = None
    ) -> Mosaic:
        """Of the encoder's patches.

        Args:
            token_map: What knows the image.
            n: How many values there are: one for each patch, with or without the class token.
            image: Which of the sample's images.
            view: Which of the pictures that the encoder sees of the image; by default all of them,
                one after the other.

        Raises:
            IndexError: There is no such image or view.
            ValueError: There are too few values.
        """
        token_map.positions("image", image=image)  # says what is wrong
        layout = token_map.layouts[image]
        if view is None:
            return cls._cut(layout.views, layout.patch_values(np.arange(n)))
        if not 0 <= view < len(layout.views):
            raise IndexError(
                f"there is no view {view}: the encoder sees {len(layout.views)} of image {image}"
            )
        grid = layout.views[view]
        n_patches = grid.rows * grid.cols
        if n not in (n_patches, n_patches + layout.n_class):
            raise ValueError(
                f"expected {n_patches} values, one for each patch of one view, or "
                f"{n_patches + layout.n_class} with its class token, got {n}"
            )
        numbers = np.arange(n - n_patches, n).reshape(grid.rows, grid.cols)
        return cls._cut([grid], [numbers])

    @classmethod
    def _cut(cls, grids: Sequence[PatchGrid], entries: Sequence[Int[np.ndarray, "_ _"]]) -> Mosaic:
        spans = [_spans(grid) for grid in grids]
        x, y = (np.unique(np.concatenate([one[axis].ravel() for one in spans])) for axis in (0, 1))
        cells = np.full((len(y) - 1, len(x) - 1), NOTHING)
        for i in sorted(range(len(grids)), key=lambda i: -grids[i].cell_area):
            cols, rows = (_which(spans[i][axis], edges) for axis, edges in ((0, x), (1, y)))
            shown = np.ix_(rows >= 0, cols >= 0)
            cells[shown] = entries[i][np.ix_(rows[rows >= 0], cols[cols >= 0])]
        return cls(x, y, cells)

    def spread(self, values: Shaped[np.ndarray, "*more n"]) -> Float[np.ndarray, "*more rows cols"]:
        """The value of each cell, NaN where it shows nothing."""
        blank = np.full((*values.shape[:-1], 1), np.nan)
        return np.concatenate([values.astype(np.float64), blank], axis=-1)[..., self.entries]

    @property
    def shown(self) -> Int[np.ndarray, " shown"]:
        """All entries that some cell shows."""
        found = np.unique(self.entries)
        return found[found != NOTHING]

    def box(self, entry: int) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) around the cells that show an entry.

        Raises:
            ValueError: No cell does.
        """
        rows, cols = np.nonzero(self.entries == entry)
        if not len(rows):
            raise ValueError(f"entry {entry} is not shown: others with smaller patches lie over it")
        x0, x1 = self.x[cols.min()], self.x[cols.max() + 1]
        y0, y1 = self.y[rows.min()], self.y[rows.max() + 1]
        return float(x0), float(y0), float(x1), float(y1)

    def cells(self) -> Float[np.ndarray, "rows cols 5"]:
        """Entry and borders (x0, y0, x1, y1) of each cell, for the hover text."""
        row, col = np.indices(self.entries.shape)
        borders = [self.x[col], self.y[row], self.x[col + 1], self.y[row + 1]]
        return np.stack([self.entries.astype(np.float64), *borders], axis=-1)


def _spans(grid: PatchGrid) -> tuple[Float[np.ndarray, "cols 2"], Float[np.ndarray, "rows 2"]]:
    """The (start, end) of each column and of each row."""
    x = [grid.box(0, col)[::2] for col in range(grid.cols)]
    y = [grid.box(row, 0)[1::2] for row in range(grid.rows)]
    return np.round(np.array(x), _SAME), np.round(np.array(y), _SAME)


def _which(
    spans: Float[np.ndarray, "n 2"], edges: Float[np.ndarray, " edges"]
) -> Int[np.ndarray, " edges-1"]:
    """The span that each piece between two edges lies in, -1 for none."""
    middles = (edges[:-1] + edges[1:]) / 2
    inside = (spans[:, 0] <= middles[:, None]) & (middles[:, None] < spans[:, 1])
    return np.where(inside.any(1), inside.argmax(1), NOTHING)

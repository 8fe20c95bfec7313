"""What each position of a sample's token sequence is, where it lies, and values as heat maps."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from vlm_lens.geometry import Merge, Number, merged_heatmap
from vlm_lens.inputs.places import PositionPlaces
from vlm_lens.inputs.token_kinds import NO_CELL, Modality, Role

Values = Shaped[Tensor, " n"] | Shaped[np.ndarray, " n"] | Sequence[Number]
PatchValues = Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."] | Sequence[Number]


class TokenMap(PositionPlaces):
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
        >>> from vlm_lens.geometry import ImageLayout, PatchGrid, PixelTransform
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


def _to_numpy(values: PatchValues) -> Float[np.ndarray, "..."]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values  # unknown to numpy
    array = np.asarray(values)
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)

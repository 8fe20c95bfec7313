"""Where in its image, or when in its sound, each position of a sample lies."""

from vlm_lens.counted import counted
from vlm_lens.geometry import Box, Number, PatchGrid
from vlm_lens.inputs.token_kinds import NO_CELL, PositionKinds

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


class PositionPlaces(PositionKinds):
    """The part of a `TokenMap` that says which patch of an image a position shows."""

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

    def positions_in(
        self, box: tuple[Number, Number, Number, Number], *, image: int = 0, view: int | None = None
    ) -> list[int]:
        """Returns the positions whose patches overlap a box in an original image.

        Args:
            box: (x0, y0, x1, y1) in pixels, ends exclusive, e.g. that of an annotated object.
            image: Which of the sample's images.
            view: Which of the image's views; by default all of them.

        Raises:
            IndexError: There is no such image or view.
            ValueError: The box holds nothing, or the positions of the image show no patches.
        """
        x0, y0, x1, y1 = box
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"expected a box (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {box}")
        self.grid(image=image, view=view)  # which says why, where positions show no patches
        found = []
        for pos in self.positions("image", image=image, view=view):
            if self.cells[pos] != NO_CELL:
                left, top, right, bottom = self.box(pos)
                if max(left, x0) < min(right, x1) and max(top, y0) < min(bottom, y1):
                    found.append(pos)
        return found

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

    def _view(self, image: int, view: int | None) -> int:
        layout = self._layout(image)
        if view is None or not layout.grids:
            return layout.overview
        if not 0 <= view < len(layout.grids):
            raise IndexError(
                f"there is no view {view}: image {image} has "
                f"{counted(len(layout.grids), 'view')}, counted from 0"
            )
        return view

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

"""Position spaces: what the positions of a hook point are, and where in an image they lie.

Hook points of the language model have the sequence's tokens, those of a vision encoder patches,
those of a Q-Former queries; a projector has patches, merged patches or queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from vlm_lens.geometry import Box, ImageLayout, PatchGrid
from vlm_lens.inputs.token_kinds import NO_CELL, Modality, Role
from vlm_lens.inputs.token_map import TokenMap
from vlm_lens.neurons.neuron import split_name

Kind = Literal[
    "tokens",
    "decoder tokens",
    "patches",
    "patches without class",
    "merged patches",
    "queries",
    "queries and text",
    "text beside queries",
    "positions",
]
"""What the positions of a hook point are; "positions" if that is not known."""

MAX_ENTRIES = 1500
"""A space with more entries is shown in part: a page with more elements is slow."""

_PICTURES: tuple[Kind, ...] = ("patches", "patches without class", "merged patches")


@dataclass(frozen=True)
class Entry:
    """One position of a hook point.

    Attributes:
        row: Its number among all positions of all rows of the activation.
        label: What it is: a token's text, or "patch", "class", "query" and the like.
        modality: "image", "audio", "text" or "special".
        role: "prompt" or "answer".
        image: Which of the sample's images it shows; -1 for none.
        view: Which of that image's views; -1 for none.
        cell: The (row, column) of its patch in the view.
        box: Its patch in pixels of the original image, None where it has no place.
    """

    row: int
    label: str
    modality: Modality
    role: Role = "prompt"
    image: int = -1
    view: int = -1
    cell: tuple[int, int] = NO_CELL
    box: Box | None = None


@dataclass(frozen=True, eq=False)
class Space:
    """The positions of some hook points.

    Attributes:
        kind: What they are.
        key: Tells this space from others.
        entries: The positions, in the order of the activation; padding is left out.
    """

    kind: Kind
    key: str
    entries: tuple[Entry, ...]

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def rows(self) -> Int[np.ndarray, " n"]:
        """Each entry's place among all positions of the activation."""
        return np.array([entry.row for entry in self.entries], dtype=np.int64)

    def is_modality(self, *modalities: Modality) -> Bool[np.ndarray, " n"]:
        """Which entries are of one of these modalities."""
        return np.array([entry.modality in modalities for entry in self.entries], dtype=bool)

    @cached_property
    def levels(self) -> list[int]:
        """How fine the patches of each entry's view are: 0 for the finest, -1 without a place."""
        area: dict[tuple[int, int], float] = {}
        for entry in self.entries:
            if entry.box is not None:
                x0, y0, x1, y1 = entry.box
                place = (entry.image, entry.view)  # clipped patches are smaller than the others
                area[place] = max(area.get(place, 0.0), (x1 - x0) * (y1 - y0))
        known = {place: _levels(area, place[0])[place] for place in area}
        return [
            -1 if entry.box is None else known[entry.image, entry.view] for entry in self.entries
        ]

    @cached_property
    def shown(self) -> Int[np.ndarray, " shown"]:
        """The entries that are drawn: all of them, or an even choice of `MAX_ENTRIES`."""
        if len(self) <= MAX_ENTRIES:
            return np.arange(len(self))
        placed = np.array([entry.cell != NO_CELL for entry in self.entries])
        others = np.flatnonzero(~placed)
        if len(others) > MAX_ENTRIES // 2:
            others = others[:: -(-len(others) * 2 // MAX_ENTRIES)]
        step = 1
        cells = np.array([entry.cell for entry in self.entries])
        while (chosen := placed & (cells % step == 0).all(1)).sum() > MAX_ENTRIES - len(others):
            step += 1
        return np.sort(np.concatenate([others, np.flatnonzero(chosen)]))

    @property
    def note(self) -> str:
        """What a reader must know, or nothing."""
        if len(self.shown) < len(self):
            return (
                f"{len(self.shown):,} of {len(self):,} {self.kind} are shown, evenly chosen; "
                "numbers of neurons are over all of them"
            )
        if self.kind.startswith("queries"):
            return "queries gather from the whole image, so they have no place in it"
        if self.kind == "positions":
            return "what these positions show is not known"
        return ""


def _levels(area: dict[tuple[int, int], float], image: int) -> dict[tuple[int, int], int]:
    """The views of an image by the size of their patches; sizes that are nearly equal are one."""
    places = sorted((place for place in area if place[0] == image), key=lambda place: area[place])
    found, level = {}, 0
    for before, place in zip([places[0], *places], places, strict=False):
        level += area[place] > 1.5 * area[before]
        found[place] = level
    return found


def described(space: Space) -> dict[str, Any]:
    """A position space as the page is told of it: only the entries that are shown."""
    shown = [(space.entries[i], space.levels[i]) for i in space.shown.tolist()]
    return {
        "kind": space.kind,
        "note": space.note,
        "at": space.shown.tolist(),
        "labels": [entry.label for entry, _ in shown],
        # A letter each: image, audio, text or special; prompt or answer.
        "modality": "".join(entry.modality[0] for entry, _ in shown),
        "role": "".join(entry.role[0] for entry, _ in shown),
        "image": [entry.image for entry, _ in shown],
        "view": [entry.view for entry, _ in shown],
        "level": [level for _, level in shown],
        "cell": [entry.cell for entry, _ in shown],
        "box": [rounded(entry.box) for entry, _ in shown],
    }


def rounded(box: Sequence[float] | None) -> list[float] | None:
    """A box as a page is told of it."""
    return None if box is None else [round(float(edge), 2) for edge in box]


def space_at(
    name: str,
    shape: Sequence[int],
    token_map: TokenMap,
    *,
    decoder: TokenMap | None = None,
    query_text: Sequence[str] = (),
) -> Space:
    """The space of a hook point.

    Args:
        name: The hook point.
        shape: Its activation's shape for this sample: rows, positions, neurons.
        token_map: What the positions of the sequence are that the images are in.
        decoder: The same of a decoder's own sequence.
        query_text: The tokens that a Q-Former reads beside its queries.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> [sample] = load_samples("shapes-llava", n=1)
        >>> token_map = model.prepare(images=sample.images, text=sample.text).token_map[0]
        >>> space = space_at("vision_encoder.blocks.0.mlp.hook_post", (1, 65, 512), token_map)
        >>> space.kind, space.entries[0].label, space.entries[2].box
        ('patches', 'class', (8.0, 0.0, 16.0, 8.0))
    """
    n_rows, width = shape[0], shape[1]
    component = split_name(name)[0].split(".")[0]
    for kind in _candidates(name, component):
        entries = entries_of(kind, token_map, decoder=decoder, query_text=query_text, width=width)
        if entries is not None and entries.n_rows == n_rows and entries.width == width:
            return Space(kind, f"{kind} {n_rows}x{width}", tuple(entries.entries))
    modality: Modality = "audio" if token_map.audios else "image"
    label = "frame" if token_map.audios else "position"
    plain = tuple(Entry(row, label, modality) for row in range(n_rows * width))
    return Space("positions", f"positions {n_rows}x{width}", plain)


def _candidates(name: str, component: str) -> tuple[Kind, ...]:
    if component in ("language_model", "encoder"):
        return ("tokens",)
    if component == "decoder":
        return ("decoder tokens",)
    if component == "qformer":
        beside: tuple[Kind, ...] = ("text beside queries",)
        return beside if ".text_mlp." in name else ("queries", "queries and text")
    return (*_PICTURES, "queries") if component in ("vision_encoder", "projector") else ()


@dataclass(frozen=True)
class Entries:
    """Entries, and the rows and positions of the activation that they are of."""

    entries: list[Entry]
    n_rows: int
    width: int


def entries_of(
    kind: Kind,
    token_map: TokenMap,
    *,
    decoder: TokenMap | None = None,
    query_text: Sequence[str] = (),
    width: int | None = None,
) -> Entries | None:
    """The positions of one kind that a sample has; None if it has none.

    Args:
        kind: Which.
        token_map: The sample.
        decoder: The sequence of its decoder.
        query_text: The tokens that a Q-Former reads beside its queries.
        width: Of the activation; by default what this sample alone gives.
    """
    if kind in ("tokens", "decoder tokens"):
        chosen = token_map if kind == "tokens" else decoder
        return None if chosen is None else Entries(list(_tokens(chosen)), 1, len(chosen))
    if kind in _PICTURES:
        return _patches(kind, token_map.layouts, width)
    layouts = token_map.layouts
    if not layouts or any(layout.grids for layout in layouts) or kind == "positions":
        return None
    queries: list[tuple[str, Modality]] = [("query", "image")] * len(layouts[0].tokens)
    text: list[tuple[str, Modality]] = [(token, "text") for token in query_text]
    columns = {"queries": queries, "queries and text": queries + text}.get(kind, text)
    entries = [
        Entry(image * len(columns) + i, label, modality, image=image if modality == "image" else -1)
        for image in range(len(layouts))
        for i, (label, modality) in enumerate(columns)
    ]
    return Entries(entries, len(layouts), len(columns))


def _tokens(token_map: TokenMap) -> Iterator[Entry]:
    for pos, (token, modality) in enumerate(zip(token_map.tokens, token_map.modality, strict=True)):
        if modality == "padding":
            continue
        cell = token_map.cells[pos]
        yield Entry(
            row=pos,
            label=token,
            modality=modality,
            role=token_map.role[pos],
            image=token_map.image_index[pos],
            view=token_map.view_index[pos],
            cell=cell,
            box=None if cell == NO_CELL else token_map.box(pos),
        )


def _patches(kind: Kind, layouts: Sequence[ImageLayout], width: int | None) -> Entries | None:
    """The pictures that an encoder sees, row by row: tiles, crops and thumbnails."""
    pictures = [
        (image, view, *found)
        for image, layout in enumerate(layouts)
        for view in range(len(layout.views))
        if (found := _picture(kind, layout, view)) is not None
    ]
    if not pictures or len(pictures) < sum(len(layout.views) for layout in layouts):
        return None
    longest = max(n_class + grid.rows * grid.cols for *_, grid, n_class in pictures)
    if width is not None and width != longest:
        return None
    entries = []
    for row, (image, view, grid, n_class) in enumerate(pictures):
        first = row * longest
        entries += [Entry(first + i, "class", "image", image=image) for i in range(n_class)]
        for i, cell in enumerate(np.ndindex(grid.rows, grid.cols)):
            place = (int(cell[0]), int(cell[1]))
            where: Any = {"image": image, "view": view, "cell": place, "box": grid.box(*place)}
            entries.append(Entry(first + n_class + i, "patch", "image", **where))
    return Entries(entries, len(pictures), longest)


def _picture(kind: Kind, layout: ImageLayout, view: int) -> tuple[PatchGrid, int] | None:
    """The grid of a row's patches, and how many class tokens are in front of them."""
    if kind == "merged patches":
        return (layout.grids[view], 0) if len(layout.grids) == len(layout.views) else None
    return layout.views[view], layout.n_class if kind == "patches" else 0

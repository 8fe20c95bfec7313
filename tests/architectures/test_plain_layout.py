"""Planted places: what changes in one patch of a picture changes there, and only there.

Where a patch is in `pixel_values` is worked out here from how the processors document their
packing, independently of `vlm_lens.architectures.rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import assert_no_hooks
from tests.families import FAMILIES, KINDS, build, example
from tests.tiny import build_tiny
from vlm_lens import HookedVLM

PATCH = 8
LLAVA = ["clip-llama", "siglip-qwen2"]
PACKED = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3"]
NAMES = [*LLAVA, *(name for name in FAMILIES if name != "qwen2_audio")]
MERGED = dict.fromkeys((*PACKED, "gemma3", "idefics3", "smolvlm", "internvl"), 2)
"""Patches that become one token together, along one side; 1 in the other families."""
QUERIES = ["instructblip-llama", "instructblip-t5", "blip2-opt", "blip2-t5", "kosmos2"]
"""Families whose projector mixes all patches."""
CLASS_TOKEN = ["clip-llama", "llava_next", *QUERIES, "internvl", "mllama"]
"""Families whose tower has a class token in front of the patches."""
WINDOW = 4
"""Patches along one side of a window in the tiny Qwen2.5-VL."""


@dataclass
class Place:
    """One patch of one picture or tile.

    Attributes:
        image: Which of those that the tower runs on; the first axis of its activations.
        row: Of the patch in the picture.
        col: Of the patch in the picture.
        rows: How many the picture has.
        cols: How many the picture has.
        pixels: The index of the patch's pixels in `pixel_values`.
    """

    image: int
    row: int
    col: int
    rows: int
    cols: int
    pixels: Any

    @property
    def raster(self) -> int:
        """The number of the patch, row by row."""
        return self.row * self.cols + self.col

    def raster_of_token(self, side: int) -> int:
        """The number of the token that it becomes together with its neighbours."""
        return self.row // side * (self.cols // side) + self.col // side


@dataclass
class Case:
    """A tiny model and its inputs, with two pictures where the family takes two."""

    name: str
    model: HookedVLM
    inputs: dict[str, Tensor]

    @property
    def n_class(self) -> int:
        """Positions of the tower in front of the patches."""
        return int(self.name in CLASS_TOKEN)

    def places(self) -> list[Place]:
        """Patches of every picture or tile: in corners and inside."""
        if self.name == "mistral3":
            return _in_padded_images(self.inputs)
        if self.name in PACKED:
            return _in_merge_groups(self.inputs)
        return _in_tiles(self.inputs)

    def read(self, *names: str, hooks: Any = (), **changed: Tensor) -> dict[str, Tensor]:
        """Activations by name, with other inputs or under hooks."""
        with torch.no_grad(), self.model.hooks(list(hooks)):
            _, cache = self.model.run_with_cache(
                {**self.inputs, **changed}, names_filter=list(names), return_cache_object=False
            )
        return cache


def _in_merge_groups(inputs: dict[str, Tensor]) -> list[Place]:
    """Qwen-VL: all pictures in one axis, of each the groups of 2x2 patches, row by row."""
    places, stored = [], 0
    for image, (_, rows, cols) in enumerate(inputs["image_grid_thw"].tolist()):
        for top, left in product(range(0, rows, 2), range(0, cols, 2)):
            for y, x in product(range(2), range(2)):
                places.append(Place(image, top + y, left + x, rows, cols, stored))
                stored += 1
    assert stored == len(inputs["pixel_values"])
    return places


def _in_padded_images(inputs: dict[str, Tensor]) -> list[Place]:
    """Pixtral: every picture in the top left corner of its own entry."""
    return [
        Place(image, row, col, height // PATCH, width // PATCH, (image, *_square(row, col)))
        for image, (height, width) in enumerate(inputs["image_sizes"].tolist())
        for row, col in product(range(height // PATCH), range(width // PATCH))
    ]


def _in_tiles(inputs: dict[str, Tensor]) -> list[Place]:
    """Pictures or tiles behind any number of axes; those that are padding do not count."""
    pixels = inputs["pixel_values"]
    rows, cols = pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH
    used = inputs.get("aspect_ratio_mask", pixels.flatten(-3).any(-1)).bool()
    return [
        Place(image, row, col, rows, cols, (*tile, *_square(row, col)))
        for image, tile in enumerate(used.nonzero().tolist())
        for row, col in product(range(rows), range(cols))
    ]


def _square(row: int, col: int) -> tuple[slice, ...]:
    """Pixels of a patch in [channel, y, x]."""
    y, x = (slice(n * PATCH, (n + 1) * PATCH) for n in (row, col))
    return slice(None), y, x


CASES: dict[tuple[str, str], Case] = {}


def case_of(name: str, kind: str) -> Case:
    if (name, kind) not in CASES:
        if name in LLAVA:
            tiny = build_tiny(name)
            CASES[name, kind] = Case(name, tiny.model, dict(tiny.inputs(kind)))
        else:
            hf, processor = build(name)
            model = HookedVLM(hf, processor=processor)
            CASES[name, kind] = Case(name, model, example(name, hf, processor, kind))
    return CASES[name, kind]


def kinds_of(name: str) -> list[str]:
    """Two pictures for one prompt, and one each for several, padded where they are not alike."""
    return [kind for kind in ("images", "batch") if kind in KINDS.get(name, ["images", "batch"])]


@pytest.fixture(params=[(name, kind) for name in NAMES for kind in kinds_of(name)], ids="-".join)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    found = case_of(*request.param)
    yield found
    assert_no_hooks(found.model)


def some(places: list[Place]) -> list[Place]:
    """A few that differ in everything; every seventh meets all rows and columns."""
    return [places[0], *places[3:-1:7], places[-1]]


def changed_at(before: Tensor, after: Tensor) -> set[tuple[int, int]]:
    """The [image, patch] whose entries differ."""
    return {(i, p) for i, p in (before != after).flatten(2).any(-1).nonzero().tolist()}


def writing_at(image: int, patch: int) -> Any:
    """A hook that changes one patch."""

    def write(tensor: Tensor, hook: Any) -> Tensor:
        noise = torch.randn(tensor.shape[-1], generator=torch.Generator().manual_seed(0))
        changed = tensor.clone()
        changed[image, patch] += noise
        return changed

    return write


@pytest.mark.sampled
def test_the_pixels_of_a_patch_are_seen_at_its_place(case: Case):
    point = "vision_encoder.hook_embed"
    before = case.read(point)[point]
    for place in some(case.places()):
        pixels = case.inputs["pixel_values"].clone()
        pixels[place.pixels] += 0.5
        after = case.read(point, pixel_values=pixels)[point]
        expected = {(place.image, case.n_class + place.raster)}
        assert changed_at(before, after) == expected, place


def test_there_are_as_many_patches_as_the_pictures_have(case: Case):
    """What the smaller pictures do not fill is zero, and nothing else is missing."""
    point = "vision_encoder.hook_embed"
    embedded = case.read(point)[point]
    real = {(place.image, case.n_class + place.raster) for place in case.places()}
    real |= {(image, 0) for image, _ in real if case.n_class}
    assert changed_at(embedded, torch.zeros_like(embedded)) == real


@pytest.mark.sampled
def test_writing_to_one_patch_changes_this_patch(case: Case):
    stream, normed = (f"vision_encoder.blocks.0.{n}" for n in ("hook_resid_pre", "hook_resid_mid"))
    silence = ("vision_encoder.blocks.0.hook_attn_out", lambda tensor, hook: tensor * 0)
    pre = "vision_encoder.blocks.0.mlp.hook_pre"
    before = case.read(stream, normed, pre, hooks=[silence])
    for place in some(case.places()):
        here = place.image, case.n_class + place.raster
        hooks = [silence, (stream, writing_at(*here))]
        after = case.read(stream, normed, pre, hooks=hooks)
        for point in (stream, normed, pre):
            assert changed_at(before[point], after[point]) == {here}, point


@pytest.mark.sampled
def test_a_patch_reaches_the_token_that_it_is_merged_into(case: Case):
    if case.name in QUERIES:
        pytest.skip("its projector mixes all patches")
    out = "projector.hook_out"
    source = "vision_encoder.hook_out"
    n_class = 0  # not handed to the projector
    if case.name == "mllama":  # hidden states of several layers go on, class token included
        source, n_class = "projector.hook_in", case.n_class
    before = case.read(out)[out]
    for place in some(case.places()):
        hooks = [(source, writing_at(place.image, case.n_class + place.raster))]
        after = case.read(out, hooks=hooks)[out]
        token = place.raster_of_token(MERGED.get(case.name, 1))
        assert changed_at(before, after) == {(place.image, n_class + token)}, place


def test_a_frame_of_sound_is_seen_at_its_place():
    """Two convolutions of width 3, of which the second one takes every other frame."""
    case = case_of("qwen2_audio", "images")
    point = "audio_encoder.hook_embed"
    before = case.read(point)[point]
    for sound, frame in ((0, 0), (0, 31), (1, 64), (1, 99)):
        features = case.inputs["input_features"].clone()
        features[sound, :, frame] += 0.5
        after = case.read(point, input_features=features)[point]
        near = {(sound, i) for i in range(before.shape[1]) if abs(2 * i - frame) <= 2}
        assert changed_at(before, after) == near


# Attention of packed towers -----------------------------------------------------------------------


def visible_from(place: Place, places: list[Place], *, windowed: bool) -> list[int]:
    """The patches, row by row, that a patch attends to."""
    return sorted(
        other.raster
        for other in places
        if other.image == place.image and not (windowed and _window(other) != _window(place))
    )


def _window(place: Place) -> tuple[int, int]:
    return place.row // WINDOW, place.col // WINDOW


def slow_pattern(
    q: Tensor, k: Tensor, places: list[Place], *, windowed: bool
) -> dict[tuple[int, int], Tensor]:
    """Of every [image, patch] its weights on the patches of the image, [head, patch]."""
    pattern = {}
    for place in places:
        seen = visible_from(place, places, windowed=windowed)
        query, keys = q[place.image, place.raster], k[place.image, seen]
        scores = torch.einsum("he,phe->hp", query, keys) * q.shape[-1] ** -0.5
        weights = torch.zeros(q.shape[2], q.shape[1])
        weights[:, seen] = scores.softmax(-1)
        pattern[place.image, place.raster] = weights
    return pattern


@pytest.mark.parametrize("kind", ["image", "images", "batch"])
@pytest.mark.parametrize("name", PACKED)
def test_the_pattern_is_that_of_rotated_queries_and_keys(name: str, kind: str):
    case = case_of(name, kind)
    places = case.places()
    for layer in range(3):
        attn = f"vision_encoder.blocks.{layer}.attn"
        points = [f"{attn}.hook_{point}" for point in ("rot_q", "rot_k", "pattern")]
        found = case.read(*points)
        q, k, pattern = (found[point] for point in points)
        windowed = name == "qwen2_5_vl" and layer != 1
        expected = slow_pattern(q, k, places, windowed=windowed)
        for (image, patch), weights in expected.items():
            torch.testing.assert_close(pattern[image, :, patch], weights)
    assert_no_hooks(case.model)


def test_windows_hide_something():
    case = case_of("qwen2_5_vl", "images")
    places = case.places()
    assert len(visible_from(places[0], places, windowed=True)) == WINDOW**2
    assert len(visible_from(places[0], places, windowed=False)) > WINDOW**2

"""Every position of every hook point is what the token map says, and lies where it says."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.families import FAMILIES
from vlm_lens.explorer import spaces
from vlm_lens.explorer.requests import Requests
from vlm_lens.explorer.spaces import Entry, Space, described

WITH_IMAGES = [name for name in FAMILIES if name != "qwen2_audio"]


@pytest.mark.sampled
@pytest.mark.parametrize("family", WITH_IMAGES)
def test_every_hook_point_has_a_known_space(
    of_family: Callable[[str], Requests], family: str
) -> None:
    layers = of_family(family).layers
    token_map = of_family(family).subject.token_map
    kinds = {space.kind for space in layers.spaces.values()}
    assert "positions" not in kinds
    assert {"tokens", "patches"} <= kinds
    for name, space in layers.spaces.items():
        rows = space.rows.tolist()
        assert len(set(rows)) == len(rows), name
        for entry in space.entries:
            if entry.box is not None:
                x0, y0, x1, y1 = entry.box
                assert 0 <= x0 <= x1 <= 50
                assert 0 <= y0 <= y1 <= 34
        if space.kind == "tokens":
            assert [entry.label for entry in space.entries] == token_map.tokens
            assert [entry.modality for entry in space.entries] == token_map.modality


@pytest.mark.parametrize("family", ["llava_next", "idefics3", "qwen2_5_vl", "mllama"])
def test_patches_lie_where_the_token_map_puts_them(
    of_family: Callable[[str], Requests], family: str
) -> None:
    requests = of_family(family)
    token_map, layers = requests.subject.token_map, requests.layers
    [space] = {id(s): s for s in layers.spaces.values() if s.kind == "patches"}.values()
    layout = token_map.layouts[0]
    for entry in space.entries:
        view, patch = divmod(entry.row, layout.n_positions)
        if entry.box is None:
            assert entry.label == "class"
            assert patch < layout.n_class
        else:
            assert entry.view == view
            assert entry.box == token_map.patch_box(patch, view=view)


def test_tiles_and_thumbnail_are_levels(of_family: Callable[[str], Requests]) -> None:
    spaces_of = of_family("llava_next").layers.spaces
    tokens = spaces_of["blocks.0.mlp.hook_post"]
    placed = [(e.view, level) for e, level in zip(tokens.entries, tokens.levels, strict=True)]
    assert set(placed) == {(-1, -1), (0, 1), (1, 0)}  # text, the thumbnail, the tiles' grid
    encoder = spaces_of["vision_encoder.blocks.0.mlp.hook_post"]
    levels = [(e.view, level) for e, level in zip(encoder.entries, encoder.levels, strict=True)]
    assert {level for view, level in levels if view == 0} == {1}
    assert {level for view, level in levels if view > 0} == {0}
    [tile] = set(of_family("idefics3").layers.spaces["projector.hook_out"].levels[:16])
    assert tile == 0


def test_queries_have_no_place_and_say_so(of_family: Callable[[str], Requests]) -> None:
    layers = of_family("instructblip-t5").layers
    queries = layers.spaces["qformer.hook_embed"]
    assert queries.kind == "queries and text"
    assert [entry.label for entry in queries.entries[:5]] == ["query"] * 4 + ["<bos>"]
    assert all(entry.box is None for entry in queries.entries)
    assert "no place" in queries.note
    assert layers.spaces["projector.hook_out"].kind == "queries"
    text = layers.spaces["qformer.blocks.0.text_mlp.hook_post"]
    assert [entry.label for entry in text.entries][1:] == [
        "what",
        "color",
        "is",
        "the",
        "circle",
        "?",
    ]
    decoder = layers.spaces["decoder.blocks.0.mlp.hook_post"]
    assert [(entry.label, entry.role) for entry in decoder.entries] == [
        ("<pad>", "prompt"),
        ("red", "answer"),
        ("square", "answer"),
    ]


def test_a_shape_that_fits_nothing_is_shown_as_plain_positions(asked: Requests) -> None:
    space = spaces.space_at("projector.mlp.hook_pre", (2, 7, 3), asked.subject.token_map)
    assert space.kind == "positions"
    assert space.rows.tolist() == list(range(14))
    assert "not known" in space.note


def test_many_entries_are_an_even_choice_with_a_note() -> None:
    grid = 60
    patches = [
        Entry(
            i,
            "patch",
            "image",
            image=0,
            view=0,
            cell=(i // grid, i % grid),
            box=(0.0, 0.0, 1.0, 1.0),
        )
        for i in range(grid * grid)
    ]
    words = [Entry(len(patches) + i, "red", "text") for i in range(20)]
    space = Space("tokens", "tokens", (*patches, *words))
    assert len(space.shown) == 30 * 30 + 20 <= spaces.MAX_ENTRIES
    chosen = {space.entries[i].cell for i in space.shown if space.entries[i].box}
    assert chosen == {(row, col) for row in range(0, grid, 2) for col in range(0, grid, 2)}
    assert set(range(len(patches), len(space))) <= set(space.shown.tolist())
    assert space.note.startswith("920 of 3,620 tokens are shown")
    assert described(space)["at"] == space.shown.tolist()


def test_many_words_are_thinned_too() -> None:
    space = Space("tokens", "t", tuple(Entry(i, "red", "text") for i in range(9000)))
    assert 0 < len(space.shown) <= spaces.MAX_ENTRIES
    assert np.unique(np.diff(space.shown)).tolist() == [12]

"""The figures of the logit lens show its tokens and probabilities."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.inputs.test_views import build
from tests.tiny import Tiny, picture
from vlm_lens.analyses.logit_lens import LogitLens, logit_lens
from vlm_lens.plots import logit_lens_by_layer, logit_lens_over_image

IMAGE = picture(0)


@pytest.fixture(scope="module")
def seen(llava: Tiny):
    inputs = llava.inputs("image")
    return logit_lens(llava.model, inputs, follow=["red"], k=3), inputs.token_map[0]


def made(positions: tuple[int, ...], n_depths: int, n_tokens: int = 3) -> LogitLens:
    """A lens of tokens 0, 1, 2, ... with falling probabilities."""
    shape = n_depths, len(positions), n_tokens
    tokens = torch.arange(n_depths * len(positions))[:, None].expand(-1, n_tokens) % 50
    return LogitLens(
        names=tuple(f"blocks.{i}.hook_resid_post" for i in range(n_depths)),
        depths=tuple(range(n_depths)),
        positions=positions,
        tokens=tokens.reshape(shape).clone(),
        probabilities=torch.full(shape, 0.25),
        texts={i: f"<b>{i}" for i in range(50)},
    )


def test_patches_show_the_probabilities_of_each_depth(seen):
    lens, token_map = seen
    figure = logit_lens_over_image(IMAGE, lens, token_map)
    assert [trace.name for trace in figure.data] == [f"depth {i}" for i in range(4)]
    for i, trace in enumerate(figure.data):
        np.testing.assert_allclose(trace.z.ravel(), lens.probabilities[i, :, 0], rtol=1e-6)
        assert trace.zmax == pytest.approx(float(lens.probabilities[..., 0].max()))
    assert [trace.visible for trace in figure.data] == [False, False, False, True]


def test_patches_name_their_tokens(seen):
    lens, token_map = seen
    trace = logit_lens_over_image(IMAGE, lens, token_map).data[2]
    pos = lens.positions[6]
    word = lens.words(2, pos)[0].strip()
    assert trace.text[1, 2] == word.replace("<", "&lt;").replace(">", "&gt;")
    lines = trace.customdata[1, 2].split("<br>")
    assert lines[0] == f"<b>position {pos}, blocks.1.hook_resid_post</b>"
    assert lines[1].endswith(f"{float(lens.probabilities[2, 6, 0]):.3f}")
    assert len(lines) == 1 + 3 + 2
    assert lines[-1] == f"'red' {float(lens.followed['red'][2, 6]):.3g}"


def test_the_slider_shows_one_depth_at_a_time(seen):
    lens, token_map = seen
    [slider] = logit_lens_over_image(IMAGE, lens, token_map).layout.sliders
    assert [step.label for step in slider.steps] == ["input", "1", "2", "3"]
    for i, step in enumerate(slider.steps):
        assert step.args[0]["visible"] == [i == j for j in range(4)]
    assert slider.active == 3


def test_a_token_that_is_followed_starts_where_it_is_most_probable(seen):
    lens, token_map = seen
    figure = logit_lens_over_image(IMAGE, lens, token_map, follow="red")
    best = int(lens.followed["red"].mean(1).argmax())
    assert figure.layout.sliders[0].active == best
    assert figure.data[best].visible is True
    np.testing.assert_allclose(figure.data[1].z.ravel(), lens.followed["red"][1], rtol=1e-6)
    assert figure.data[1].text is None
    with pytest.raises(KeyError, match="'blue' was not followed, but \\['red'\\]"):
        logit_lens_over_image(IMAGE, lens, token_map, follow="blue")


def test_tiles_lie_over_the_thumbnail():
    token_map = build()
    lens = made(tuple(range(1, 21)), 2)
    lens.probabilities[1, 4] = 0.5  # position 5, the first patch of the tile
    figure = logit_lens_over_image(picture(0, size=(40, 20)), lens, token_map)
    assert figure.data[1].z[0].tolist() == [0.25, 0.5, 0.25, 0.25, 0.25]
    assert figure.data[0].text[0, 1] == "&lt;b&gt;4"
    assert (figure.data[0].text == "&lt;b&gt;0").sum() == 1  # once, though it has two cells


def test_of_many_depths_some_are_shown(monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["vlm_lens.plots.logit_lens_over_image"]
    monkeypatch.setattr(module, "_MOST_CELLS", 100)
    token_map = build()
    lens = made(tuple(range(1, 21)), 33)
    figure = logit_lens_over_image(picture(0, size=(40, 20)), lens, token_map)
    assert [trace.name for trace in figure.data] == [f"depth {i}" for i in (0, 8, 16, 24, 32)]
    assert "5 of 33 depths" in figure.layout.title.text


def test_positions_elsewhere_are_refused(seen):
    _, token_map = seen
    with pytest.raises(ValueError, match="none of them was decoded"):
        logit_lens_over_image(IMAGE, made((0,), 2), token_map)


def test_by_layer_rows_are_depths_and_columns_are_tokens(llava: Tiny):
    inputs = llava.inputs("image")
    token_map = inputs.token_map[0]
    lens = logit_lens(llava.model, inputs, positions="text", k=2)
    figure = logit_lens_by_layer(lens, token_map)
    [heatmap] = figure.data
    np.testing.assert_allclose(heatmap.z, lens.probabilities[..., 0], rtol=1e-6)
    first = lens.positions[0]
    assert figure.layout.xaxis.ticktext[0] == f"what ({first})"
    assert list(figure.layout.yaxis.ticktext) == ["0", "1", "2", "3"]
    words = lens.words(3, first)
    assert words[0].replace("<", "&lt;").replace(">", "&gt;") == heatmap.text[3, 0]
    lines = heatmap.customdata[3, 0].split("<br>")
    assert lines[:2] == ["<b>blocks.2.hook_resid_post</b>", f"behind position {first}, 'what':"]
    assert len(lines) == 4


def test_by_layer_of_many_positions_some_are_shown(seen):
    _, token_map = seen
    longer = token_map.extend(["<b>"] * 200)
    lens = made(tuple(range(len(longer))), 2)
    figure = logit_lens_by_layer(lens, longer)
    assert figure.data[0].z.shape == (2, 18)
    assert f"18 of {len(longer)} positions" in figure.layout.title.text
    assert figure.layout.xaxis.ticktext[-1] == f"&lt;b&gt; ({len(longer) - 1})"
    chosen = logit_lens_by_layer(lens, longer, positions=[5, 3])
    assert [tick[-3:] for tick in chosen.layout.xaxis.ticktext] == ["(5)", "(3)"]
    with pytest.raises(ValueError, match="position 999 was not decoded"):
        logit_lens_by_layer(lens, longer, positions=[999])

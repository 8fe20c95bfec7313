"""Attention over tokens: a row for each head, and one column for an image."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import Tiny, picture
from vlm_lens.plots import attention_over_tokens

IMAGE = picture(1, size=(50, 34))


def seen(tiny: Tiny):
    inputs = tiny.model.prepare(images=IMAGE, text="what color ?")
    return inputs.token_map[0], tiny.model.run_with_cache(inputs)[1]["pattern", 2][0]


def test_cells_show_the_caches_weights(llava: Tiny):
    token_map, pattern = seen(llava)
    last = pattern[:, -1].double().numpy()
    [heatmap] = attention_over_tokens(pattern[:, -1], token_map, position=-1).data
    positions = token_map.positions("image")
    columns = [0, None, *range(positions[-1] + 1, len(token_map))]
    expected = np.stack(
        [last[:, positions].sum(1) if c is None else last[:, c] for c in columns], axis=1
    )
    np.testing.assert_allclose(heatmap.z[1:], expected, rtol=1e-6)
    np.testing.assert_allclose(heatmap.z[0], expected.mean(0), rtol=1e-6)
    np.testing.assert_allclose(heatmap.z.sum(1), 1, rtol=1e-5)
    assert heatmap.customdata[2, -1] == f"head 1<br>position {len(token_map) - 1} (prompt): '?'"


def test_what_a_patch_receives_from_an_image_is_a_mean(llava: Tiny):
    token_map, pattern = seen(llava)
    pos = token_map.positions("image")[3]
    to_patch = pattern[:, :, pos]
    figure = attention_over_tokens(
        to_patch, token_map, position=pos, received=True, image=IMAGE, heads=[2]
    )
    mean = float(to_patch[2, token_map.positions("image")].double().mean())
    assert figure.data[0].z[0, 1] == pytest.approx(mean)
    assert "mean" in figure.data[0].customdata[0, 1]
    shape = figure.layout.shapes[-1]
    assert (shape.x0, shape.y0, shape.x1, shape.y1) == pytest.approx(token_map.box(pos))
    assert (figure.layout.images[0].sizex, figure.layout.images[0].sizey) == IMAGE.size
    assert tuple(figure.layout.xaxis2.range) == (0, 50)
    assert "receives" in figure.layout.title.text


def test_special_tokens_show_as_text(llava: Tiny):
    token_map, pattern = seen(llava)
    figure = attention_over_tokens(pattern[:, -1], token_map)
    assert list(figure.layout.xaxis.ticktext[:2]) == ["&lt;bos&gt;", "image ×16"]
    assert "&lt;bos&gt;" in figure.data[0].customdata[0, 0]


def test_padding_is_left_out_and_images_are_told_apart(llava: Tiny):
    batch = llava.inputs("images").token_map[0]
    ticks = attention_over_tokens(np.ones((1, len(batch))), batch).layout.xaxis.ticktext
    assert list(ticks)[:4] == ["&lt;bos&gt;", "image 0 ×16", "left", "image 1 ×16"]
    padded = llava.inputs("batch").token_map[2]
    figure = attention_over_tokens(np.ones((1, len(padded))), padded)
    assert padded.modality.count("padding") > 0
    assert "&lt;pad&gt;" not in figure.layout.xaxis.ticktext


def test_of_many_tokens_those_with_most_attention_are_shown(llava: Tiny):
    token_map = llava.inputs("text").token_map[0].extend([f"w{i}" for i in range(200)])
    weights = np.zeros((30, len(token_map)))
    weights[:, 100:150] = 0.02
    figure = attention_over_tokens(weights, token_map)
    assert figure.data[0].z.shape == (25, 60)
    assert (figure.data[0].z > 0.01).sum() == 25 * 50
    assert "60 of" in figure.layout.title.text
    assert "24 of 30 heads" in figure.layout.title.text


def test_refuses_what_does_not_fit(llava: Tiny):
    token_map, pattern = seen(llava)
    with pytest.raises(ValueError, match="expected one weight for each of 20 positions, got 3"):
        attention_over_tokens(pattern[:, -1, :3], token_map)
    with pytest.raises(ValueError, match="position 0, which shows no patch"):
        attention_over_tokens(pattern[:, 0], token_map, position=0, image=IMAGE)
    with pytest.raises(
        ValueError, match="the position of a patch together with an image, got none"
    ):
        attention_over_tokens(pattern[:, 0], token_map, image=IMAGE)

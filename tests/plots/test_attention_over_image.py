"""Attention over an image: each panel shows one head's weights, patch by patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.inputs.test_views import build
from tests.tiny import Tiny, picture
from vlm_lens.plots import attention_over_image

IMAGE = picture(1, size=(50, 34))


def seen(tiny: Tiny):
    inputs = tiny.model.prepare(images=IMAGE, text="what color ?")
    return inputs.token_map[0], tiny.model.run_with_cache(inputs)[1]


def test_panels_show_the_caches_weights(llava: Tiny):
    token_map, cache = seen(llava)
    last = cache["pattern", 2][0, :, -1]
    figure = attention_over_image(IMAGE, last, token_map, position=-1)
    np.testing.assert_allclose(figure.data[0].z, token_map.grid_values(last.mean(0)), rtol=1e-6)
    for head, panel in enumerate(figure.data[1:]):
        np.testing.assert_array_equal(panel.z, token_map.grid_values(last[head]))
        share = float(last[head, token_map.positions("image")].sum())
        assert panel.name == f"head {head}: {share:.0%}"
    assert len(figure.data) == 5
    assert {panel.zmax for panel in figure.data} == {max(panel.z.max() for panel in figure.data)}
    place = len(token_map) - 1
    assert figure.layout.title.text == f"Attention of position {place}, '?', over the image"


def test_patches_lie_where_the_model_sees_them(tiny: Tiny):
    token_map, cache = seen(tiny)
    panel = attention_over_image(IMAGE, cache["pattern", 0][0, :, -1], token_map, heads=[1]).data[0]
    for pos in token_map.positions("image"):
        row, col = token_map.cell(pos)
        assert panel.customdata[row, col].tolist() == pytest.approx([pos, *token_map.box(pos)])


def test_the_query_patch_is_outlined(llava: Tiny):
    token_map, cache = seen(llava)
    pos = token_map.positions("image")[5]
    figure = attention_over_image(IMAGE, cache["pattern", 1][0, :, pos], token_map, position=pos)
    for shape in figure.layout.shapes:
        assert (shape.x0, shape.y0, shape.x1, shape.y1) == pytest.approx(token_map.box(pos))
    assert len(figure.layout.shapes) == len(figure.data)
    assert not attention_over_image(IMAGE, cache["pattern", 1][0, :, 0], token_map).layout.shapes


def test_patches_of_the_encoder_have_a_class_token_before_them(llava: Tiny):
    token_map, cache = seen(llava)
    pattern = cache["vision_encoder.blocks.1.attn.hook_pattern"][0, :, 3]
    figure = attention_over_image(IMAGE, pattern, token_map, position=3, patches=True, heads=[2])
    np.testing.assert_array_equal(figure.data[0].z.ravel(), pattern[2, 1:])
    assert figure.data[0].customdata[0, 2, 0] == 3
    shape = figure.layout.shapes[0]
    assert (shape.x0, shape.y0) == pytest.approx(token_map.patch_box(3)[:2])
    assert "1 of 17 keys have no place of their own" in figure.layout.title.text
    with pytest.raises(ValueError, match="say patches=True where the keys are patches"):
        attention_over_image(IMAGE, pattern, token_map)


def test_tiles_lie_over_the_thumbnail_and_all_of_them_count():
    token_map = build()
    weights = np.arange(21.0)[None] / 210
    figure = attention_over_image(picture(0, size=(40, 20)), weights, token_map)
    assert figure.data[0].z[:, 0].tolist() == [w / 210 for w in (1, 1, 3, 3)]
    assert figure.data[0].z[0].tolist() == [w / 210 for w in (1, 5, 6, 7, 8)]
    assert figure.data[0].name == "head 0: 100%"


def test_of_many_heads_those_are_shown_that_attend_to_the_image():
    token_map, n = build(), 21
    weights = np.zeros((40, n))
    weights[:, 0] = 1.0
    weights[5:20, 1:] = 0.01
    figure = attention_over_image(picture(0, size=(40, 20)), weights, token_map)
    assert [panel.name.split(":")[0] for panel in figure.data[1:]] == [
        f"head {head}" for head in range(5, 20)
    ]
    assert "15 of 40 heads" in figure.layout.title.text
    chosen = attention_over_image(picture(0, size=(40, 20)), weights, token_map, heads=[39, 2])
    assert [panel.name for panel in chosen.data[1:]] == ["head 39: 0%", "head 2: 0%"]
    with pytest.raises(IndexError, match="there is no head 40: there are 40"):
        attention_over_image(picture(0, size=(40, 20)), weights, token_map, heads=[40])


def test_axes_are_those_of_the_image(llava: Tiny):
    token_map, cache = seen(llava)
    layout = attention_over_image(IMAGE, cache["pattern", 0][0, :, -1], token_map).layout
    assert len(layout.images) == 5
    assert {(image.sizex, image.sizey) for image in layout.images} == {IMAGE.size}
    assert [tuple(layout[f"xaxis{i}"].range) for i in range(1, 6)] == [(0, 50)] * 5
    assert layout.yaxis3.scaleanchor == "x3"


def test_bfloat16_is_drawn():
    weights = torch.full((1, 21), 0.5, dtype=torch.bfloat16)
    figure = attention_over_image(picture(0, size=(40, 20)), weights, build(), limit=2.0)
    assert (figure.data[0].z == 0.5).all()
    assert figure.data[0].zmax == 2

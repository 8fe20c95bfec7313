"""The heat map lies where the patches lie."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.tiny import Tiny, picture
from vlm_lens.plots import neuron_over_image


def test_patches_lie_where_the_model_sees_them(tiny: Tiny) -> None:
    image = picture(1, size=(50, 34))
    token_map = tiny.model.prepare(images=image, text="what color ?").token_map[0]
    grid = token_map.grid()
    values = torch.arange(16.0).view(4, 4)
    trace = neuron_over_image(image, values, grid=grid).data[0]
    for row in range(4):
        for col in range(4):
            box = (trace.x[col], trace.y[row], trace.x[col + 1], trace.y[row + 1])
            assert box == pytest.approx(grid.box(row, col))
            assert trace.customdata[row, col].tolist() == pytest.approx([row, col, *box])
            assert trace.z[row, col] == values[row, col]


def test_axes_are_those_of_the_image() -> None:
    layout = neuron_over_image(picture(0, size=(60, 40)), np.eye(2)).layout
    background = layout.images[0]
    assert (layout.xaxis.range, layout.yaxis.range) == ((0, 60), (40, 0))
    assert layout.yaxis.scaleanchor == "x"
    assert (background.x, background.y, background.sizex, background.sizey) == (0, 0, 60, 40)
    assert background.layer == "below"
    assert background.source.startswith("data:image/png;base64,")


def test_without_a_grid_values_cover_the_image() -> None:
    image = picture(0, size=(6, 4))
    trace = neuron_over_image(image, np.zeros((4, 6))).data[0]
    assert trace.x.tolist() == list(range(7))
    assert trace.y.tolist() == list(range(5))


def test_colours_are_centred_on_zero() -> None:
    signed = neuron_over_image(picture(0), np.array([[-1.0, 3.0]])).data[0]
    unsigned = neuron_over_image(picture(0), np.array([[1.0, 3.0]])).data[0]
    limited = neuron_over_image(picture(0), np.array([[-1.0, 3.0]]), limit=10.0).data[0]
    assert (signed.zmin, signed.zmax) == (-3, 3)
    assert (unsigned.zmin, unsigned.zmax) == (0, 3)
    assert (limited.zmin, limited.zmax) == (-10, 10)
    assert signed.colorscale[-1] == unsigned.colorscale[-1]


def test_says_what_it_shows() -> None:
    figure = neuron_over_image(picture(0), np.eye(2), label="effect (logits)", title="neuron 7")
    assert figure.layout.title.text == "neuron 7"
    assert figure.data[0].colorbar.title.text == "effect (logits)"
    assert "effect (logits) <b>%{z" in figure.data[0].hovertemplate
    assert json.loads(figure.to_json())["layout"]["modebar"]["remove"] == ["sendChartToCloud"]


def test_refuses_values_and_images_that_do_not_fit_the_grid(llava: Tiny) -> None:
    grid = llava.inputs("image").token_map[0].grid()
    with pytest.raises(ValueError, match="4 rows and 4 columns of values, one per patch, got 2"):
        neuron_over_image(picture(0), np.eye(2), grid=grid)
    with pytest.raises(ValueError, match="pass the original image"):
        neuron_over_image(picture(0, size=(9, 9)), np.eye(4), grid=grid)


def test_of_many_values_some_are_drawn():
    values = np.arange(600.0 * 400).reshape(600, 400)
    figure = neuron_over_image(picture(0), values)
    [trace] = figure.data
    assert trace.z.shape == (256, 256)
    assert (trace.z[0, 0], trace.z[-1, -1]) == (0, 600 * 400 - 1)
    assert "256 of 600 rows or columns" in figure.layout.title.text

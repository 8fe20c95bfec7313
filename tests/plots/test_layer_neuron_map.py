"""Every cell of the map shows a neuron's own value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlm_lens.plots import layer_neuron_map

ONE, TWO = "blocks.0.mlp.hook_post", "vision_encoder.blocks.11.attn.hook_z<b>"


def test_rows_are_sorted_and_cells_know_their_neuron():
    figure = layer_neuron_map(
        {ONE: torch.tensor([1.0, -2.0, 3.0]), TWO: np.array([np.nan, 4.0])}, label="effect"
    )
    [heatmap] = figure.data
    np.testing.assert_array_equal(heatmap.z, [[3, 1, -2], [4, np.nan, np.nan]])
    assert heatmap.customdata.tolist() == [[2, 0, 1], [1, 0, -1]]
    assert list(figure.layout.yaxis.ticktext) == [ONE, TWO.replace("<b>", "&lt;b&gt;")]
    assert heatmap.hovertemplate.startswith("<b>%{y}[%{customdata}]</b><br>effect <b>")
    assert (heatmap.zmin, heatmap.zmax) == (-4, 4)
    assert figure.layout.title.text == "effect of 5 neurons"


@pytest.mark.usefixtures("unchecked")
def test_neurons_may_stay_in_their_places():
    figure = layer_neuron_map({ONE: np.array([1.0, -2.0, 3.0])}, label="x", order="index")
    assert figure.data[0].z.tolist() == [[1, -2, 3]]
    assert figure.layout.xaxis.title.text == "neuron"
    with pytest.raises(ValueError, match="unknown order 'name'"):
        layer_neuron_map({ONE: np.ones(2)}, label="x", order="name")


@pytest.mark.parametrize("order", ["index", "value"])
def test_neighbours_share_a_cell_where_there_are_many(order):
    values = np.random.default_rng(0).standard_normal((2, 11_008))
    figure = layer_neuron_map({ONE: values[0], TWO: values[1, :5000]}, label="x", order=order)
    [heatmap] = figure.data
    assert heatmap.z.shape == (2, 734)
    assert "one of 15 neighbouring neurons" in figure.layout.title.text
    neurons = heatmap.customdata
    np.testing.assert_array_equal(heatmap.z[0], values[0][neurons[0]])
    np.testing.assert_array_equal(heatmap.z[1, :333], values[1][neurons[1, :333]])
    assert (neurons[1, 334:] == -1).all()
    sequence = np.arange(11_008) if order == "index" else np.argsort(-values[0], kind="stable")
    for cell in (0, 300, 733):
        shared = sequence[cell * 15 : cell * 15 + 15]
        assert neurons[0, cell] == shared[np.abs(values[0][shared]).argmax()]


def test_a_few_huge_neurons_do_not_blanch_the_others():
    values = np.linspace(0, 1, 1000)
    values[:3] = 100
    figure = layer_neuron_map({ONE: values}, label="x")
    assert figure.data[0].zmax == pytest.approx(0.992, abs=0.002)
    assert "neurons are beyond it, up to 100" in figure.layout.title.text
    assert layer_neuron_map({ONE: values}, label="x", limit=100.0).data[0].zmax == 100


def test_of_many_hook_points_some_are_shown():
    figure = layer_neuron_map({f"blocks.{i}.x": np.full(3, i) for i in range(300)}, label="x")
    assert figure.data[0].z.shape == (120, 3)
    assert figure.data[0].z[-1, 0] == 299
    assert "120 of 300 hook points" in figure.layout.title.text


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="expected values of neurons, got none"):
        layer_neuron_map({}, label="x")

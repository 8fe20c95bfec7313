"""Where neurons sit: every neuron is counted in the cell of its component, layer and matrix."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fake_critical import MATRICES, SIZES, ranking, result
from vlm_lens.neurons import NeuronSet
from vlm_lens.plots import where_they_sit


def grids(figure) -> dict[str, tuple[list[str], list[str], np.ndarray, np.ndarray]]:
    """By component: its rows, columns, texts and hints."""
    found = {}
    for number, (heatmap, heading) in enumerate(
        zip(figure.data, figure.layout.annotations, strict=True), 1
    ):
        rows = figure.layout[f"yaxis{number}"].ticktext
        columns = figure.layout[f"xaxis{number}"].ticktext
        name = heading.text.partition("</b>")[0].removeprefix("<b>")
        found[name] = list(rows), list(columns), heatmap.text, heatmap.customdata
    return found


def test_every_critical_neuron_is_counted_where_it_is():
    found = result(k=12)
    shown = grids(found.where())
    assert list(shown) == ["vision_encoder", "projector", "language_model"]
    rows, columns, texts, _ = shown["language_model"]
    assert rows == ["gate", "up", "down"]
    assert columns == [str(layer) for layer in range(8)]
    for neuron in set(SIZES):
        count = sum(one.name == neuron for one in found.neurons)
        component, layer = neuron.split(".")[0], neuron.split(".")[1]
        if component == "blocks":
            cell = texts[rows.index(MATRICES[neuron]), int(layer)]
            assert cell == (str(count) if count else "")
    total = sum(int(text or 0) for *_, texts, _ in shown.values() for text in texts.flat)
    assert total == 12


def test_a_projector_has_no_layers():
    rows, columns, texts, hints = grids(result(k=12).where())["projector"]
    assert (rows, columns) == (["linear_1", "linear_2"], ["not in layers"])
    assert texts.tolist() == [[""], ["1"]]
    assert hints[1, 0].startswith("<b>projector, linear_2</b><br>1 of 128 neurons critical")


def test_hints_name_the_neurons_best_first():
    hints = grids(result(k=12).where())["language_model"][3]
    assert hints[2, 1].split("<br>") == [
        "<b>language_model, layer 1, down</b>",
        "6 of 128 neurons critical",
        "blocks.1.hook_mlp_out: 0, 37, 74, 3, 40, 77",
    ]
    assert hints[2, 0] == "<b>language_model, layer 0, down</b><br>0 of 128 neurons critical"


def test_long_lists_are_cut_and_say_so():
    figure = where_they_sit(ranking(1000), sizes=SIZES, matrices=MATRICES)
    assert grids(figure)["language_model"][3][0, 0].endswith("46, 47 and<br>296 more")
    assert figure.layout.title.text == "Where 1,000 neurons sit"


def test_an_empty_result_shows_where_nothing_is():
    figure = result(k=None, ks=(0, 1, 16), onset=None).where()
    assert figure.layout.title.text == "CAN: no collapse within 16 neurons"
    assert all(set(heatmap.text.flat) == {""} for heatmap in figure.data)
    assert not any(heatmap.showscale for heatmap in figure.data)
    assert all(np.isfinite(heatmap.z).all() for heatmap in figure.data)


def test_what_is_not_known_is_left_blank():
    neurons = NeuronSet.from_indices({"blocks.3.hook_attn_out": [1], "blocks.1.hook_x<b>": [5, 6]})
    [heatmap] = where_they_sit(neurons).data
    assert np.isfinite(heatmap.z).tolist() == [
        [False, False, False, True],
        [False, True, False, False],
    ]
    figure = where_they_sit(neurons)
    assert list(figure.layout.yaxis.ticktext) == ["hook_attn_out", "hook_x&lt;b&gt;"]
    assert figure.layout.annotations[0].text == "<b>language_model</b>  3 neurons"


def test_layers_and_the_rest_of_a_component_share_a_grid():
    neurons = NeuronSet.from_indices({"ln_final.hook_scale": [0], "blocks.1.hook_mlp_out": [1]})
    [(_, columns, texts, _)] = grids(where_they_sit(neurons)).values()
    assert columns == ["–", "0", "1"]
    assert texts.tolist() == [["", "", "1"], ["1", "", ""]]


def test_more_is_stronger_and_colours_are_shared():
    figure = result(k=1000, ks=(0, 1000), onset=None).where()
    assert len({(heatmap.zmin, heatmap.zmax) for heatmap in figure.data}) == 1
    language = figure.data[2]
    count = np.array([[int(text or 0) for text in row] for row in language.text])
    order = np.argsort(count, axis=None)
    assert (np.diff(language.z.flatten()[order]) >= 0).all()
    edge = language.colorscale[1][0] * (language.zmax - language.zmin) + language.zmin
    assert (language.z[count == 0] < edge).all()
    assert (language.z[count > 0] > edge).all()


@pytest.mark.sampled
@pytest.mark.parametrize("count", [1, 999, 1000, 123_456])
def test_counts_fit_their_cells(count):
    name = "blocks.0.mlp.hook_post"
    figure = where_they_sit(NeuronSet.from_indices({name: range(count)}))
    assert figure.data[0].text[0, 0] == {1: "1", 999: "999", 1000: "1k", 123_456: "123k"}[count]


def test_cells_of_all_components_are_equally_wide():
    figure = result().where()
    widths = []
    for number in (1, 2, 3):
        axis = figure.layout[f"xaxis{number}"]
        widths.append((axis.domain[1] - axis.domain[0]) / (axis.range[1] - axis.range[0]))
    assert max(widths) == pytest.approx(min(widths))


def test_titles_show_as_text():
    assert where_they_sit(ranking(3), title="<b>").layout.title.text == "&lt;b&gt;"
    assert result().where().layout.title.text == "CAN: where the 12 critical neurons sit"


def test_nothing_at_all_is_refused():
    with pytest.raises(ValueError, match="pass sizes to draw an empty model"):
        where_they_sit(NeuronSet())
    assert where_they_sit(NeuronSet(), sizes=SIZES).data

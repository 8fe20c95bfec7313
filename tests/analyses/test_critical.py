"""A result of a search: what it says, counts, saves and refuses."""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import pandas as pd
import pytest

from tests.fake_critical import ANSWERS, MATRICES, PROMPTS, SIZES, ranking, result
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.places import matrices_of, places
from vlm_lens.neurons.sites import matrix_of, sites

# What it says -------------------------------------------------------------------------------------


def test_the_critical_neurons_are_the_first_k_of_the_ranking():
    found = result(k=12)
    assert list(found.neurons) == list(found.ranking)[:12]
    assert len(found.ranking) == 16


def test_without_collapse_there_are_no_critical_neurons():
    found = result(k=None, ks=(0, 1, 512), onset=None)
    assert len(found.neurons) == 0
    assert repr(found) == "CriticalNeurons(CAN: no collapse within 512 neurons)"


def test_it_says_how_many_where_and_from_when():
    found = result(k=1000, ks=(0, 1000, 1001), onset=600, is_monotone=False)
    assert repr(found) == (
        "CriticalNeurons(CAN: k* = 1,000 of 1,001 ranked, language_model 972, projector 14, "
        "vision_encoder 14; degradation from 600; not monotone)"
    )


def test_it_prints_as_a_table_with_its_notes():
    lines = str(result(notes=("not monotone: k = 13 does not collapse",))).splitlines()
    assert lines[0].startswith("CriticalNeurons(CAN: k* = 12 of 16 ranked")
    assert lines[1].split() == ["k", "collapsed", *result().metrics]
    assert len(lines) == 2 + 13 + 1
    assert lines[-1] == "Note: not monotone: k = 13 does not collapse"


def test_the_table_leaves_open_what_was_not_measured():
    curve = (
        Measurement(0, {"perplexity": 1.5}),
        Measurement(1, {"perplexity": math.inf, "similarity": 0.25}, True),
    )
    table = result(k=1, curve=curve, onset=None).table()
    assert table.columns.tolist() == ["k", "collapsed", "perplexity", "similarity"]
    assert table["perplexity"].tolist() == [1.5, math.inf]
    assert math.isnan(table["similarity"][0])
    assert table["collapsed"].tolist() == [None, True]


def test_html_shows_text_as_text():
    html = result(method="<b>CAN</b>", notes=("<script>", "b & c"))._repr_html_()
    assert set(re.findall(r"</?([a-z]+)", html)) == {
        "p",
        "b",
        "table",
        "tr",
        "th",
        "td",
        "ul",
        "li",
    }
    assert html.count("<b>") == 1
    assert "&lt;b&gt;CAN&lt;/b&gt;: k* = 12" in html
    assert "collapse at &lt;10x&gt;." in html
    assert [f"k = {k}" in html for k in (0, 7, 11, 12, 16)] == [True, True, True, True, False]


def test_html_without_collapse_shows_clean_and_last():
    html = result(k=None, ks=(0, 1, 2, 512), onset=None)._repr_html_()
    assert re.findall(r"k = ([0-9]+)", html) == ["0", "512"]


# What it counts -----------------------------------------------------------------------------------


def test_histograms_count_every_critical_neuron_once():
    found = result(k=12)
    for by in ("component", "layer", "matrix", "site"):
        table = found.histogram(by)
        assert table["critical"].sum() == 12, by
        assert table["neurons"].sum() == sum(SIZES.values()), by


def test_histograms_agree_with_counting_one_by_one():
    found = result(k=1000, ks=(0, 1000), onset=None)
    counted = Counter((n.component, n.layer, MATRICES[n.name], n.site) for n in found.neurons)
    for column, by in enumerate(("layer", "matrix", "site"), 1):
        expected = Counter()
        for place, count in counted.items():
            expected[place[0], place[column]] += count
        rows = found.histogram(by)[["component", by, "critical"]].itertuples(index=False)
        shown = {(c, None if pd.isna(place) else place): n for c, place, n in rows}
        assert {place: n for place, n in shown.items() if n} == dict(expected)


def test_histograms_list_places_without_critical_neurons():
    table = result(k=12).histogram("layer")
    language = table[table["component"] == "language_model"]
    assert language["layer"].tolist() == list(range(8))
    assert language["critical"].tolist() == [0, 8, 0, 0, 0, 0, 2, 0]
    assert table["component"].unique().tolist() == ["vision_encoder", "projector", "language_model"]
    by_matrix = result(k=12).histogram("matrix")
    assert set(by_matrix["matrix"]) == {"gate", "up", "down", "fc1", "fc2", "linear_1", "linear_2"}


def test_an_unknown_size_makes_an_unknown_sum():
    known, other = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"
    neurons = NeuronSet.from_indices({known: [1], other: [2]}, sizes={known: 8})
    found = result(
        k=2, ranking=neurons, curve=(Measurement(0, {}), Measurement(2, {}, True)), sizes={}
    )
    assert found.histogram("component")["neurons"].isna().tolist() == [True]
    assert found.histogram("layer")["neurons"].tolist() == [8, pd.NA]


def test_a_histogram_by_something_else_is_refused(unchecked):
    with pytest.raises(ValueError, match="'component', 'layer', 'matrix' or 'site', got 'head'"):
        result().histogram("head")  # type: ignore[arg-type]


def test_matrices_are_those_of_the_model(tiny):
    every = tiny.model.hook_dict
    names = sites(tiny.model)
    assert matrices_of(names, every) == {name: matrix_of(name, every) for name in names}
    guessed = matrices_of(names)  # from all sites: what is guessed is right
    assert guessed == {name: matrix_of(name, every) for name in guessed}


def test_a_matrix_is_not_guessed_from_too_little():
    down, up = "blocks.3.hook_mlp_out", "blocks.0.mlp.hook_pre_linear"
    assert matrices_of([down]) == {}
    assert matrices_of([down, up]) == {down: "down", up: "up"}
    table = places(NeuronSet.from_indices({down: [1]}), sizes={}, matrices={})
    assert table["matrix"].tolist() == ["hook_mlp_out"]


# On disk ------------------------------------------------------------------------------------------


def same(one: CriticalNeurons, other: CriticalNeurons) -> bool:
    """Whether two results agree in everything, rank and sizes included, NaN being NaN."""

    def parts(found: CriticalNeurons) -> str:
        fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
        return repr(fields | {"ranking": (list(found.ranking), found.ranking.sizes)})

    return parts(one) == parts(other)


@pytest.mark.parametrize(
    "found",
    [
        result(),
        result(k=None, ks=(0, 1, 512), onset=None, notes=("no collapse",)),
        result(infinite_from=13, is_monotone=False, prompts=("inf", "nan", "", "'inf")),
        result(parameters={"threshold": math.inf, "names": ["<image>"], "inner": {"a": None}}),
    ],
)
def test_a_result_comes_back_as_it_was(tmp_path, found):
    found.save(tmp_path / "can")
    back = CriticalNeurons.load(tmp_path / "can")
    assert same(back, found)
    assert [path.name for path in (tmp_path / "can").iterdir()] == ["critical.json"]


def test_a_file_is_readable(tmp_path):
    result().save(tmp_path)
    text = (tmp_path / "critical.json").read_text()
    assert '"blocks.1.hook_mlp_out[0]"' in text
    assert json.loads(text)["fields"]["stages"]["onset"] == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.pop("curve"), "'curve'"),
        (lambda fields: fields.update(more=1), "CriticalNeurons has no 'more'"),
        (lambda fields: fields.update(k=3.5), "got 3.5"),
        (lambda fields: fields["ranking"].update(neurons=["a"]), "cannot read 'a' as a neuron"),
        (
            lambda fields: fields["ranking"].update(sizes={"projector.hook_out": 1}),
            "does not exist",
        ),
        (lambda fields: fields.update(curve=[1]), "expected <class 'dict'>, got 1"),
        (lambda fields: fields["curve"][0].update(metrics=[]), "expected <class 'dict'>, got []"),
        (lambda fields: fields.update(prompts=["one"]), "as many references and answers"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, unchecked, change, message):
    result().save(tmp_path)
    path = tmp_path / "critical.json"
    content = json.loads(path.read_text())
    change(content["fields"])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as caught:
        CriticalNeurons.load(tmp_path)
    assert message in str(caught.value)


def test_a_parameter_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"got object at fields\['parameters'\]\['a'\]"):
        result(parameters={"a": object()}).save(tmp_path)
    assert not list(tmp_path.iterdir())


# What it refuses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curve": ()}, r"rises from k = 0, got k = \[\]"),
        ({"curve": (Measurement(1, {}),)}, "rises from k = 0"),
        ({"curve": (Measurement(0, {}), Measurement(2, {}), Measurement(1, {}))}, "rises"),
        ({"curve": (Measurement(0, {}), Measurement(1, {}), Measurement(1, {}))}, "rises"),
        ({"k": 5}, "expected k among those measured"),
        ({"k": 0}, "expected k among those measured"),
        ({"ranking": ranking(15)}, "at least 16 neurons, as many as were masked, got 15"),
        ({"prompts": PROMPTS[:2]}, r"as prompts, got \[2, 4\]"),
        ({"references": ()}, r"as prompts, got \[0, 4\]"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        result_with(**changes)


def result_with(**changes: object) -> CriticalNeurons:
    """`result`, with parts replaced after it is known to fit together."""
    found = result()
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    return CriticalNeurons(**(fields | changes))  # type: ignore[arg-type]


def test_clean_answers_are_those_of_the_first_measurement():
    assert result().curve[0].answers == ANSWERS
    assert result().stages == Stages(7, 12, result().stages.rule)

"""CircuitsVis' drawings ask for nothing, show all tokens, and hold the numbers they are given."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from tests.page import Page, assert_self_contained
from vlm_lens.plots import ScriptFigure, attention_heads, neurons_over_tokens

NASTY = ["<bos>", "<image>", "</script>", "<!-- <script>", "a & b &lt;", '"quoted"']


def props(figure: ScriptFigure) -> dict:
    """What CircuitsVis is given to draw."""
    [drawing] = re.findall(r"CircuitsVis\.\w+,\s+(\{.*\})\s+\)\s*</script>", figure.html)
    return json.loads(drawing)


@pytest.fixture(scope="module")
def heads() -> ScriptFigure:
    pattern = torch.arange(72.0).reshape(2, 6, 6) / 72
    return attention_heads(pattern, NASTY, title="<b>heads</b>")


@pytest.fixture(scope="module")
def neurons() -> ScriptFigure:
    return neurons_over_tokens(NASTY, np.arange(36.0).reshape(6, 2, 3), layers=["<a>", "b"])


def test_pages_ask_for_nothing(heads, neurons):
    for figure in (heads, neurons):
        page = Page(figure.html)
        assert_self_contained(page)
        assert len(page.programs) == 3
        assert "unpkg.com" not in figure.html


def test_heads_hold_the_weights_and_the_tokens_as_they_are(heads):
    given = props(heads)
    np.testing.assert_allclose(given["attention"], np.arange(72).reshape(2, 6, 6) / 72, atol=5e-5)
    assert given["tokens"] == NASTY
    assert given["maskUpperTri"] is False
    assert given["positiveColor"] == "rgb(213, 94, 0)"
    assert given["maxValue"] == pytest.approx(71 / 72)


def test_tokens_that_become_html_hold_no_tag(neurons):
    given = props(neurons)
    np.testing.assert_array_equal(given["activations"], np.arange(36).reshape(6, 2, 3))
    assert [token.replace("\u2060", "") for token in given["tokens"]] == NASTY
    assert not any(re.search("[<&][^\u2060]", token) for token in given["tokens"])
    assert given["firstDimensionLabels"] == ["<a>", "b"]


def test_colours_are_those_of_the_house(neurons):
    assert re.search(r'="rgb\(0, 114, 178\)",\w+="rgb\(213, 94, 0\)"\)', neurons.html)
    assert '="red",' not in neurons.html.split("CircuitsVis.render")[0].split("getContext")[0]


def test_titles_show_as_text(heads):
    assert "<b>heads</b>" in Page(heads.html).text


def test_notebooks_show_it_in_a_frame(heads):
    frame = heads._repr_html_()
    page = Page(frame)
    assert [tag for tag, _ in page.elements] == ["iframe"]
    assert page.elements[0][1]["srcdoc"] == heads.html
    assert "height:900px" in page.elements[0][1]["style"]


def test_later_tokens_are_grey_where_attention_is_causal():
    causal = attention_heads(np.tril(np.ones((1, 3, 3))), ["a", "b", "c"])
    assert props(causal)["maskUpperTri"] is True
    assert "grey are later tokens" in causal.html
    assert props(attention_heads(np.eye(3)[None], ["a"] * 3, is_causal=False))["maskUpperTri"] is (
        False
    )


@pytest.mark.full
def test_of_many_tokens_the_images_are_thinned_out():
    tokens = ["<bos>", *["<image>"] * 576, *(f"w{i}" for i in range(40))]
    pattern = np.random.default_rng(0).random((32, 617, 617)).astype(np.float32)
    figure = attention_heads(pattern, tokens)
    given = props(figure)
    assert np.shape(given["attention"]) == (12, 100, 100)
    assert given["tokens"][0] == "<bos> @0"
    assert given["tokens"][-40:] == [f"w{i} @{577 + i}" for i in range(40)]
    assert sum(token.startswith("<image> @") for token in given["tokens"]) == 59
    assert given["attention"][3][0][-1] == pytest.approx(float(pattern[3, 0, -1]), abs=1e-4)
    text = Page(figure.html).text
    assert "100 of 617 tokens, each with its position behind @; rows do not add up to 1" in text
    assert "12 of 32 heads" in text
    chosen = props(attention_heads(pattern, tokens, heads=[31], positions=[600, 1]))
    assert chosen["attention"][0][0][1] == pytest.approx(float(pattern[31, 600, 1]), abs=1e-4)
    assert chosen["attentionHeadNames"] == ["31"]


def test_of_many_neurons_the_most_active_are_shown():
    values = np.random.default_rng(0).standard_normal((700, 24, 64)).astype(np.float32)
    values[350, 3, 17] = 99
    figure = neurons_over_tokens(["a"] * 700, values)
    given = props(figure)
    tokens, layers, neurons = np.shape(given["activations"])
    assert (tokens, layers) == (600, 24)
    assert tokens * layers * neurons <= 200_000
    assert "17" in given["secondDimensionLabels"]
    assert f"{neurons} of 64 neurons: the most active" in Page(figure.html).text


def test_nan_is_drawn_as_zero():
    weights = np.full((1, 2, 2), np.nan)
    figure = attention_heads(weights, ["a", "b"])
    assert props(figure)["attention"] == [[[0, 0], [0, 0]]]
    assert "NaN is drawn as 0." in figure.html


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="one key for each of 2 tokens, got 3 queries and 3 keys"):
        attention_heads(np.ones((1, 3, 3)), ["a", "b"])
    with pytest.raises(IndexError, match="there is no head 1: there are 1"):
        attention_heads(np.ones((1, 2, 2)), ["a", "b"], heads=[1])
    with pytest.raises(IndexError, match="there is no position 2"):
        attention_heads(np.ones((1, 2, 2)), ["a", "b"], positions=[2])
    with pytest.raises(ValueError, match="expected activations of 1 tokens, 1 layers and 2 neuron"):
        neurons_over_tokens(["a"], np.ones((2, 1, 2)))

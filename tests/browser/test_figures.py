"""Figures as files, opened in a real browser without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.inputs.test_views import build
from tests.plots.test_logit_lens_figures import made
from tests.tiny import picture
from vlm_lens import plots

NASTY = ["<bos>", "<image>", "</script>", "<script>alert(1)</script>", "a & b", '"quoted"', "&lt;"]
TOKENS = "span[title]"


@pytest.fixture
def opened(offline: Callable[..., Any], tmp_path: Path) -> Callable[[Any], Any]:
    """Saves a figure and opens the file; the page must ask for nothing and fail nowhere."""

    def open_figure(figure: Any) -> Any:
        plots.save(figure, tmp_path / "figure.html")
        return offline(tmp_path / "figure.html")

    return open_figure


def test_tokens_show_as_text(opened):
    page = opened(plots.neuron_over_tokens(NASTY, np.ones(7)))
    assert page.locator(TOKENS).all_inner_texts() == NASTY


def test_tokens_of_many_neurons_show_as_text_and_menus_change_them(opened):
    values = np.zeros((7, 2, 2))
    values[1, 1, 1], values[2, 1, 1] = 4.0, -4.0
    page = opened(plots.neurons_over_tokens(NASTY, values, layers=["<a>", "</script>"]))
    spans = page.locator(".colored-tokens > span > span")
    shown = [text.replace("\u2060", "").replace("\xa0", " ") for text in spans.all_inner_texts()]
    assert shown == NASTY
    assert page.locator("option").all_inner_texts()[:2] == ["<a>", "</script>"]
    page.select_option("#layer-selector", "1")
    page.select_option("#neuron-selector", "1")
    colours = [
        spans.nth(i).evaluate("span => getComputedStyle(span).backgroundColor") for i in range(3)
    ]
    assert colours == ["rgb(255, 255, 255)", "rgb(213, 94, 0)", "rgb(0, 114, 178)"]


def test_heads_are_chosen_with_a_click(opened):
    page = opened(plots.attention_heads(np.tril(np.ones((3, 7, 7))) / 7, NASTY))
    page.wait_for_selector("canvas")
    assert page.locator("canvas").count() == 4
    page.locator("h4", has_text="2").click()
    assert page.locator("h2").inner_text() == "2"


@pytest.mark.full
def test_a_click_on_the_slider_shows_another_depth(opened):
    lens = made(tuple(range(1, 21)), 3)
    figure = plots.logit_lens_over_image(picture(0, size=(40, 20)), lens, build())
    page = opened(figure)
    page.wait_for_selector(".slider-group")
    token = page.locator("svg text", has_text="<b>14")  # of depth 0, which is not shown yet
    assert token.count() == 0
    page.locator(".slider-rail-touch-rect").click(position={"x": 8, "y": 10})
    token.wait_for()
    visible = "document.querySelector('.figure').data.map(trace => trace.visible)"
    assert page.evaluate(visible) == [True, False, False]
    assert token.count() == 1


@pytest.mark.full
def test_a_patch_says_its_value_when_pointed_at(opened):
    figure = plots.neuron_over_image(picture(0), np.array([[0.0, 7.25]]), label="<b>effect")
    page = opened(figure)
    box = page.locator(".nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
    page.wait_for_selector(".hovertext")
    assert "<b>effect 7.25" in page.locator(".hovertext").text_content()


@pytest.mark.full
def test_a_frame_in_a_notebook_fits_its_figure(offline: Callable[..., Any], tmp_path: Path):
    figure = plots.neurons_over_tokens(NASTY, np.ones((7, 1, 1)))
    page = tmp_path / "notebook.html"
    page.write_text(f"<!doctype html><body>{figure._repr_html_()}</body>", encoding="utf-8")
    opened = offline(page)
    opened.wait_for_function("document.querySelector('iframe').clientHeight < 250")
    frame = opened.frames[1]
    frame.wait_for_selector(".colored-tokens")
    inner = frame.evaluate("document.documentElement.offsetHeight")
    opened.wait_for_function(
        f"Math.abs(document.querySelector('iframe').clientHeight - {inner}) < 40"
    )

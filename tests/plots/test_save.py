"""Figures as files: whole, self-contained, and refused with a reason."""

from __future__ import annotations

import builtins
import shutil
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
from PIL import Image

from tests.page import Page, assert_self_contained
from tests.tiny import picture
from vlm_lens.plots import attention_heads, neuron_over_image, neuron_over_tokens, save
from vlm_lens.plots.layout import framed

NASTY = "</script><b>&"


@pytest.fixture(scope="module")
def chart() -> go.Figure:
    return neuron_over_image(picture(0), np.eye(2), title=NASTY, label=NASTY)


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8").replace("<!doctype html>", ""))
    assert_self_contained(page)
    return page


def test_a_chart_becomes_a_page_with_everything_in_it(chart, tmp_path: Path):
    save(chart, tmp_path / "chart.html")
    page = read(tmp_path / "chart.html")
    [figure] = page.figures
    assert figure["layout"]["title"]["text"].startswith("&lt;/script&gt;&lt;b&gt;&amp;")
    assert figure["data"][0]["z"]["shape"] == "2, 2"
    assert len(page.programs) == 2
    assert "showSendToCloud: false" in page.programs[1]
    assert figure["layout"]["modebar"]["remove"] == ["sendChartToCloud"]
    assert NASTY in page.text  # the page's title


def test_figures_that_are_html_become_pages(tmp_path: Path):
    save(neuron_over_tokens([NASTY], np.ones(1)), str(tmp_path / "tokens.HTML"))
    page = read(tmp_path / "tokens.HTML")
    assert NASTY in page.text
    assert not page.programs
    figure = attention_heads(np.eye(2)[None], ["a", NASTY])
    save(figure, tmp_path / "heads.html")
    assert (tmp_path / "heads.html").read_text(encoding="utf-8") == figure.html


def test_a_figure_that_cannot_be_written_leaves_what_was_there(
    chart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "chart.html"
    path.write_text("before")

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save(chart, path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_other_names_and_things_are_refused(chart, tmp_path: Path):
    with pytest.raises(ValueError, match="ends in .html, .png or .svg, got 'chart.pdf'"):
        save(chart, "chart.pdf")
    with pytest.raises(NotADirectoryError, match="there is no folder for it"):
        save(chart, tmp_path / "missing" / "chart.html")
    with pytest.raises(ValueError, match="TokenFigure is HTML, which no .png can hold"):
        save(neuron_over_tokens(["a"], np.ones(1)), tmp_path / "a.png")


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_figure_is_refused(tmp_path: Path):
    with pytest.raises(TypeError, match="expected a figure, got list"):
        save([], tmp_path / "a.html")


def test_without_kaleido_the_error_says_what_to_install(
    chart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "kaleido":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'vlm-lens\[images\]'"):
        save(chart, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_a_browser_the_error_says_what_to_install(
    chart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("kaleido")
    from choreographer.errors import ChromeNotFoundError

    def fail(*args, **kwargs):
        raise ChromeNotFoundError

    monkeypatch.setattr(go.Figure, "to_image", fail)
    with pytest.raises(RuntimeError, match="on Debian: apt install chromium"):
        save(chart, tmp_path / "a.svg")


@pytest.mark.full
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium")
def test_pictures_are_drawn(chart, tmp_path: Path):
    pytest.importorskip("kaleido")
    save(chart, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as drawn:
        assert drawn.size == (2 * chart.layout.width, 2 * chart.layout.height)
        assert len(drawn.convert("RGB").getcolors(2**24) or []) > 20
    save(chart, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").read_text().startswith("<svg")


@pytest.mark.full
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium")
def test_titles_of_several_lines_are_whole(tmp_path: Path):
    pytest.importorskip("kaleido")
    layout = framed(title="Title", remarks=["remark"], width=400, height=100, margin={"t": 0})
    save(go.Figure(layout=layout), tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as drawn:
        ink = np.asarray(drawn.convert("L")).min(axis=1) < 128
    assert 2 * 8 < ink.argmax() < 2 * 24

"""The sheet shows where a neuron is active, in pictures and words, and escapes what it is given."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.analyses.test_exemplars import text_view
from tests.analyses.test_simulate import mixed_view
from tests.tiny import picture
from vlm_lens import Neuron
from vlm_lens.analyses.exemplars import Exemplar, Exemplars
from vlm_lens.analyses.explaining.sheet import exemplar_sheet
from vlm_lens.plots import style

NEURON = Neuron("blocks.1.mlp.hook_act", 7)


class Page(HTMLParser):
    """The tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.tags if name == tag]


def some(*, predicted: bool = False, n: int = 1) -> Exemplars:
    """Images of 4 x 4 patches, of which one is active, and two words."""
    top = []
    for i in range(n):
        view = mixed_view(picture(i), "what", " color")
        values = np.zeros(18)
        values[6], values[17] = 10.0, 5.0
        guess = np.linspace(0, 9, 18) if predicted else None
        top.append(Exemplar(view, values, guess))
    return Exemplars(NEURON, tuple(top), (), 2.5)


def sheet(*args: Any, **options: Any) -> Page:
    page = Page(exemplar_sheet(*args, **options).html)
    assert not page.open  # whatever is opened is closed
    return page


def test_patches_are_coloured_by_their_activation():
    page = sheet(some())
    cells = [rect for rect in page.of("rect") if "fill-opacity" in rect]
    assert len(cells) == 16
    hot = [rect for rect in cells if float(rect["fill-opacity"]) > 0]
    assert len(hot) == 1
    place = (hot[0]["x"], hot[0]["y"], hot[0]["width"], hot[0]["height"])
    assert place == ("16", "8", "8", "8")
    assert hot[0]["fill"] == "rgb(213,94,0)"
    assert float(hot[0]["fill-opacity"]) == style.STRONGEST


def test_words_are_coloured_and_say_their_value():
    page = sheet(some())
    chips = [span for span in page.of("span") if "title" in span]
    assert [chip["title"] for chip in chips] == ["prompt: 0", "prompt: 5"]
    assert style.css(style.POSITIVE, 0.4) in chips[1]["style"]


@pytest.mark.parametrize(
    ("tokens", "said"), [(("a", " cat", "like"), "a catlike"), (("a", "cat"), "a cat")]
)
def test_tokens_stand_apart_as_in_their_text(tokens: tuple[str, ...], said: str):
    one = Exemplar(text_view(*tokens), np.ones(len(tokens)))
    assert said in sheet(Exemplars(NEURON, (one,), (), 1.0)).text


def test_the_most_active_part_is_shown_in_its_colours():
    [crop] = sheet(some()).of("img")
    import base64
    import io

    part = Image.open(io.BytesIO(base64.b64decode(crop["src"].split(",")[1])))
    expected = picture(0).crop((8, 0, 32, 24))  # the patch and one around it
    assert part.size == expected.size
    np.testing.assert_array_equal(np.asarray(part), np.asarray(expected))


def test_held_out_samples_have_the_prediction_beside_the_truth():
    page = sheet(some(), held_out=some(predicted=True))
    svgs = page.of("svg")
    assert len(svgs) == 3
    opacities = [float(r["fill-opacity"]) for r in page.of("rect") if "fill-opacity" in r][-16:]
    expected = [style.tint(value, 10.0)[1] for value in np.linspace(0, 9, 18)[:16]]
    assert sorted(opacities) == pytest.approx(sorted(expected))
    assert "predicted:" in page.text


def test_predictions_of_another_scale_are_stretched():
    one = some().top[0]
    guess = np.linspace(-0.2, 0.3, 18)
    guess[16:] = np.nan
    held_out = Exemplars(NEURON, (Exemplar(one.view, one.values, guess),), (), 2.5)
    page = sheet(some(), held_out=held_out)
    opacities = [float(r["fill-opacity"]) for r in page.of("rect") if "fill-opacity" in r][-16:]
    assert max(opacities) == style.STRONGEST
    assert min(opacities) == 0.0
    assert "predicted:" not in page.text  # no word has one


def test_heading_explanation_remark_and_scale_are_there():
    page = sheet(some(), explanation="red things", remark="score 0.5")
    for said in (str(NEURON), "red things", "score 0.5", "activation (10 is 2.5)"):
        assert said in page.text


def test_everything_given_is_escaped():
    evil = '<script>alert("1")</script>'
    view = text_view(evil, "&amp;", "\n", " ")
    one = Exemplar(view, np.array([10.0, 0.0, 0.0, 0.0]))
    found = exemplar_sheet(
        Exemplars(Neuron("<b>.hook", 1), (one,), (), 1.0), explanation=evil, remark=evil
    )
    assert "<script" not in found.html
    page = Page(found.html)
    assert {tag for tag, _ in page.tags} <= {"div", "span", "b"}
    assert page.text.count(evil) == 3
    assert "&amp;" in page.text
    assert "↵" in page.text
    assert "␣" in page.text
    assert found._repr_html_() == found.html


def test_nothing_is_asked_of_the_network():
    html = exemplar_sheet(some(n=3), held_out=some(predicted=True, n=3)).html
    for link in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert link.startswith("data:image/")
    assert "http" not in html.replace("http://www.w3.org", "")


def test_at_most_n_samples_and_some_words_around_the_peak_are_shown():
    assert len(sheet(some(n=5), n=2).of("svg")) == 2
    values = np.zeros(100)
    values[60] = 9.0
    one = Exemplar(text_view(*(f"w{i}" for i in range(100))), values)
    page = sheet(Exemplars(NEURON, (one,), (), 1.0), context=10)
    assert re.findall(r"w\d+", page.text) == [f"w{i}" for i in range(55, 65)]


def test_without_the_image_the_patches_are_still_there():
    exemplars = some()
    exemplars.top[0].view.sample.images.clear()
    page = sheet(exemplars)
    assert page.of("img") == page.of("image") == []
    assert len(page.of("rect")) == 17


def test_no_exemplar_is_no_error():
    page = sheet(Exemplars(NEURON, (), (), 1.0), held_out=Exemplars(NEURON, (), (), 1.0))
    assert str(NEURON) in page.text


def test_a_silent_sample_has_no_most_active_part():
    view = mixed_view(picture(0))
    page = sheet(Exemplars(NEURON, (Exemplar(view, np.zeros(16)),), (), 1.0))
    assert page.of("img") == []


@pytest.mark.parametrize("wrong", [{"n": 0}, {"context": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        exemplar_sheet(some(), **wrong)

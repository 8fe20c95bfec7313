"""The gallery shows answers as they are, and marks those that masking changed."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tests.fake_critical import ANSWERS, PROMPTS, result
from vlm_lens.masking.measurement import Measurement
from vlm_lens.plots import style


class Table(HTMLParser):
    """The cells of a gallery, row by row, and whether each is marked."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.marked: list[list[bool]] = []
        self.text = ""
        self._in_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
            self.marked.append([])
        if tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")
            self.marked[-1].append(style.css(style.POSITIVE, 0.22) in dict(attrs)["style"])

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data


def test_answers_stand_beside_the_clean_ones():
    table = Table(result(ks=(0, 2, 10, 12), onset=10).gallery().html)
    head, *rows = table.rows
    assert head == [
        "prompt",
        "reference answer",
        "k = 0clean",
        "k = 2",
        "k = 10degradation begins",
        "k = 12collapse",
    ]
    assert [row[0] for row in rows] == list(PROMPTS)
    assert [row[1] for row in rows] == ["a red circle", "2", "yes", "–"]
    assert [row[2] for row in rows] == list(ANSWERS)
    assert rows[2][3:] == ["yes", "≠ no", "≠ </script><b>red"]
    assert rows[1][5] == "≠ ∅"
    marked = [[False, False, False], [False, False, True], [False, True, True]]
    assert [row[3:] for row in table.marked[1:]] == [
        marked[0][:2] + [True],
        marked[1],
        marked[2],
        marked[2],
    ]


def test_answers_show_as_text():
    table = Table(result(method="<i>", prompts=("<b>", "</td>", '"', "&lt;")).gallery().html)
    assert table.tags == {"div", "b", "table", "thead", "tbody", "tr", "th", "td"}
    assert [row[0] for row in table.rows[1:]] == ["<b>", "</td>", '"', "&lt;"]
    assert "<i>: k* = 12" in table.text


def test_notebooks_show_it():
    gallery = result().gallery()
    assert gallery._repr_html_() == gallery.html


def test_only_measurements_with_answers_are_shown():
    head = Table(result(ks=(0, 1, 2, 3, 12), onset=None).gallery().html).rows[0]
    assert head[2:] == ["k = 0clean", "k = 2", "k = 12collapse"]


def test_references_are_left_out_where_there_are_none():
    head = Table(result(references=(None,) * 4).gallery().html).rows[0]
    assert head[1] == "k = 0clean"


def test_a_few_samples_of_many():
    table = Table(result().gallery(n=2).html)
    assert len(table.rows) == 1 + 2
    assert "the first 2 of 4 samples" in table.text
    assert "samples" not in Table(result().gallery(n=4).html).text


def test_of_many_measurements_the_telling_ones_are_shown():
    ks = tuple(sorted({0, *(2**i for i in range(12)), *range(990, 1012)}))
    table = Table(result(k=1000, ks=ks, onset=512).gallery().html)
    shown = [int(re.sub("[^0-9]", "", text)) for text in table.rows[0][2:]]
    assert len(shown) == 8
    assert {0, 256, 512, 998, 1000, 2048} <= set(shown)
    assert "8 of the 23 measurements with answers" in table.text


def test_the_reader_may_choose_the_measurements():
    head = Table(result().gallery(ks=[12, 0, 12]).html).rows[0]
    assert head[2:] == ["k = 0clean", "k = 12collapse"]
    with pytest.raises(ValueError, match="no answers for k = 7, but for 0, 2, 4"):
        result().gallery(ks=[0, 7])


def test_without_clean_answers_nothing_is_called_changed():
    curve = (Measurement(0, {}), Measurement(12, {}, True, ANSWERS))
    table = Table(result(curve=curve).gallery().html)
    assert not any(any(row) for row in table.marked)


def test_without_answers_there_is_no_gallery():
    curve = (Measurement(0, {}), Measurement(12, {}, True))
    with pytest.raises(ValueError, match="expected measurements with answers, got none"):
        result(curve=curve).gallery()
    with pytest.raises(ValueError, match="n of at least 1, got 0"):
        result().gallery(n=0)

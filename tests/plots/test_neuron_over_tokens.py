"""Tokens show as text, whatever they hold, each with its own value."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from vlm_lens.plots import neuron_over_tokens, style


class Chips(HTMLParser):
    """The chips of a figure: what they say, their hint and their background."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.chips: list[tuple[str, str, str]] = []
        self.text = ""
        self._open: tuple[str, str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if "title" in given:
            self._open = given["title"], given["style"].rpartition("background:")[2]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open is not None:
            self.chips.append((data, *self._open))
            self._open = None


def chips(*args, **options) -> list[tuple[str, str, str]]:
    return Chips(neuron_over_tokens(*args, **options).html).chips


def test_special_tokens_show_as_text() -> None:
    tokens = ["<bos>", "<image>", "</script>", "<script>alert(1)</script>", '" onclick="x', "&lt;"]
    html = neuron_over_tokens(tokens, np.ones(6), groups=["<b>"] * 6, label="<i>").html
    parsed = Chips(html)
    assert [text for text, _, _ in parsed.chips] == tokens
    assert set(parsed.tags) == {"div", "span"}
    assert "<b>" in parsed.text
    assert "<i>" in parsed.text


def test_white_space_shows() -> None:
    assert [c[0] for c in chips(["a\nb", " ", " red", ""], np.ones(4))] == ["a↵b", "␣", " red", "∅"]


def test_colours_and_hints_are_the_values() -> None:
    shown = chips(["a", "b", "c"], torch.tensor([1.0, -2.0, float("nan")]))
    assert [hint for _, hint, _ in shown] == ["position 0: 1", "position 1: -2", "position 2: nan"]
    assert [colour for _, _, colour in shown] == [
        style.css(style.POSITIVE, 0.4),
        style.css(style.NEGATIVE, 0.8),
        style.css(style.POSITIVE, 0.0),
    ]
    assert chips(["a"], np.ones(1), limit=2.0)[0][2] == style.css(style.POSITIVE, 0.4)


def test_a_long_run_is_one_chip() -> None:
    tokens = ["<image>"] * 64 + [" red"] * 3
    values = np.concatenate([np.linspace(-4, 1, 64), np.ones(3)])
    shown = chips(tokens, values)
    assert shown[0][:2] == (
        "<image> ×64, peak -4, mean -1.5",
        "positions 0 to 63: from -4 to 1",
    )
    assert shown[0][2] == style.css(style.NEGATIVE, 0.8)
    assert [text for text, _, _ in shown[1:]] == [" red"] * 3
    assert len(chips(tokens, values, collapse=100)) == 67
    blank = chips(["<image>"] * 9, np.full(9, np.nan))
    assert blank == [("<image> ×9", "positions 0 to 8", style.css(style.POSITIVE, 0.0))]


def test_groups_start_new_lines_and_break_runs() -> None:
    figure = neuron_over_tokens(
        ["a"] * 10, np.ones(10), groups=["prompt"] * 2 + ["answer"] * 8, collapse=8
    )
    parsed = Chips(figure.html)
    assert [text for text, _, _ in parsed.chips] == ["a", "a", "a ×8, peak 1, mean 1"]
    assert parsed.text.index("prompt") < parsed.text.index("answer")


def test_the_legend_names_the_values() -> None:
    signed = Chips(neuron_over_tokens(["a", "b"], np.array([-1.0, 2.0]), label="logits").html).text
    unsigned = Chips(neuron_over_tokens(["a"], np.array([2.0])).html).text
    assert signed.endswith("logits -22")
    assert unsigned.endswith("activation 02")


def test_notebooks_show_it() -> None:
    figure = neuron_over_tokens(["a"], np.ones(1))
    assert figure._repr_html_() == figure.html
    assert "http" not in figure.html


@pytest.mark.parametrize(("n_values", "n_groups"), [(3, 2), (2, 3)])
def test_refuses_values_that_do_not_fit(n_values: int, n_groups: int) -> None:
    with pytest.raises(ValueError, match="for each of 2 tokens"):
        neuron_over_tokens(["a", "b"], np.ones(n_values), groups=["x"] * n_groups)

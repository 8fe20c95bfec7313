"""The page of neuron types: it says what was found and how sure that is, and asks nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.page import Page, assert_self_contained
from vlm_lens.analyses.neuron_types_labels import LABELS, SiteTypes
from vlm_lens.analyses.neuron_types_result import NeuronTypes
from vlm_lens.pages.tables import of_frame
from vlm_lens.studies.known import OWN
from vlm_lens.studies.options import read_study
from vlm_lens.studies.page import lines, render_study

ATTACK = "<script>alert(1)</script></script>\"'><img src=x onerror=alert(2)>"
NAME = "blocks.{}.mlp.hook_act"
SUREST = "The surest visual neurons"
PAPER = {"T_v": 2.0, "n_v": 4, "T_t": 3.0, "n_t": 2}


def site(*counts: tuple[int, int, int, int], tails: list[float], maxima: float = 1.0) -> SiteTypes:
    """Neurons with so many samples of each type, and one chance for all types of each."""
    return SiteTypes(
        torch.tensor(counts).T.contiguous(),
        torch.full((len(counts),), maxima),
        torch.tensor([tails] * 4, dtype=torch.float64),
    )


def tried(*changed: int) -> list[dict[str, int | float]]:
    """The paper's thresholds and others, at which so many of four neurons are visual."""
    rows = []
    for i, n in enumerate((0, *changed)):
        row = {**PAPER, "T_v": 2.0 + i, "n_v": 4 + max(0, i - 1)}
        rows.append({**row, **dict(zip(LABELS, (n, 4 - n, 0, 0), strict=True)), "changed": n})
    return rows


def types(**changes: Any) -> NeuronTypes:
    """Two sure visual neurons, a text one that is not sure, an unknown one that is never active."""
    given: dict[str, Any] = {
        "sites": {
            NAME.format(0): site((9, 1, 0, 0), (8, 0, 2, 0), tails=[1e-14, 1e-4]),
            NAME.format(1): site((0, 6, 4, 0), tails=[0.1]),
            NAME.format(2): site((0, 0, 0, 10), tails=[1.0], maxima=-1.0),
        },
        "parameters": {
            **PAPER,
            "high_confidence": 0.8,
            "alpha": 0.05,
            "n_samples": 30,
            "top_samples": 10,
            "left_out": {"3": "ValueError: the answer is empty", "5": "it is not finite"},
        },
        "tried": tried(1, 3),
    }
    return NeuronTypes(**(given | changes))


def html(found: NeuronTypes, **options: Any) -> str:
    given: dict[str, Any] = {
        "about": {"Model": "tiny", "Samples": "30"},
        "options": {"n": 30},
        "command": "vlm-lens types",
    }
    return render_study(read_study(*OWN["types"].split(":")), found, **(given | options))


def said(found: NeuronTypes) -> str:
    """All sentences of the page."""
    return "\n".join(" ".join(section.sentences) for section in found.sections())


def table_of(found: NeuronTypes, title: str = "") -> list[list[str]]:
    """The first table of that title, as the page writes it."""
    tables = [s.table for s in found.sections() if s.title == title and s.table is not None]
    made = of_frame(tables[0])
    return [made.heads, *made.rows]


# In words -----------------------------------------------------------------------------------------


def test_labels_are_told_most_first() -> None:
    expected = "4 neurons: 50% visual, 25% text, 25% unknown and 0% multi-modal"
    assert types().headline() == expected
    assert lines(types())[0] == f"{expected}."


def test_labels_are_told_against_chance() -> None:
    told = said(types())
    assert "at most 0 of 4 labels would be expected to have a p-value up to 0.05; 2 have" in told
    assert "Corrected for their number 2 (50%) are more than chance" in told
    assert "2 of 2 visual, 0 of 1 text and 0 of 1 unknown." in told


def test_nothing_more_than_chance_is_told_as_such() -> None:
    found = types(sites={NAME.format(0): site((9, 1, 0, 0), (0, 6, 4, 0), tails=[0.3, 0.2])})
    assert "Corrected for their number, no label is more than chance." in said(found)
    assert "largest share of each label" not in said(found)  # of one layer there is none
    assert "NaN" not in Page(html(found)).text


def test_high_confidence_and_silence_are_told() -> None:
    assert "2 (50%) have a share above 0.8" in said(types())
    assert "1 are never active, and so unknown." in said(types())


def test_answers_that_are_too_short_for_text_are_told() -> None:
    short, long = ({**types().parameters, "n_text_tokens": n} for n in (33, 60))
    assert (
        "answers have 1.1 text tokens on average, and a sample needs 2"
        in (types(parameters=short).notes[-1])
    )
    assert "text tokens on average" not in " ".join(types(parameters=long).notes)


def test_layers_with_the_largest_shares_are_told() -> None:
    [sentence] = next(s.sentences for s in types().sections() if s.title == "By layer")
    assert "visual in layer 0 (100%), text in layer 1 (100%) and unknown in layer 2" in sentence
    assert "multi-modal" not in sentence


def test_other_thresholds_are_told() -> None:
    [sentence] = next(s.sentences for s in types().sections() if s.title.startswith("At other"))
    assert sentence.startswith(
        "At 2 other combinations of thresholds 25% to 75% of the neurons have another label"
    )
    assert "visual 0% to 75%, text 25% to 100%, multi-modal 0%" in sentence
    assert "No other thresholds were tried." in said(types(tried=tried()))


# Tables and page ----------------------------------------------------------------------------------


def test_the_table_of_labels_counts_neurons() -> None:
    heads, *rows = table_of(types())
    assert rows == [
        ["visual", "2", "50%", "1", "2", "2", "0"],
        ["text", "1", "25%", "0", "0", "0", "0"],
        ["multi-modal", "0", "0%", "0", "0", "0", "0"],
        ["unknown", "1", "25%", "1", "0", "0", "1"],
        ["expected by chance, at most", "–", "–", "–", "0", "0", "–"],
    ]
    assert heads[3:6] == ["share above 0.8", "p ≤ 0.05", "more than chance, corrected"]


def test_thresholds_are_rows() -> None:
    _, _, row, *_ = table_of(types(), "At other thresholds")
    assert row == ["3", "4", "3", "2", "25%", "75%", "0%", "0%", "25%"]


def test_the_surest_neurons_come_first() -> None:
    sure = site((7, 3, 0, 0), (8, 2, 0, 0), (9, 1, 0, 0), tails=[1e-15, 1e-30, 0.01])
    found = types(sites={NAME.format(0): sure})
    assert [s.title for s in found.sections() if "surest" in s.title] == [SUREST]
    heads, *cells = table_of(found, SUREST)
    rows = [dict(zip(heads, row, strict=True)) for row in cells]
    assert [row["index"] for row in rows] == ["1", "0", "2"]  # below 1e-12 the share decides
    assert [row["p value"] for row in rows] == ["below 1e-12", "below 1e-12", "0.04"]


@pytest.mark.parametrize(("others", "n_tables"), [((1, 3), 2), ((1,), 1)])
def test_all_combinations_are_folded_where_there_are_more(
    others: tuple[int, ...], n_tables: int
) -> None:
    shown = Page(html(types(tried=tried(*others))))
    assert shown.count("details") == n_tables - 1


def test_the_page_shows_what_was_found() -> None:
    found = types()
    shown = Page(html(found, notes=["2 samples left out: no image"]))
    assert_self_contained(shown)
    text = " ".join(shown.text.split())
    for expected in (
        *(found.headline(), *said(found).splitlines()),
        *("2 samples left out: no image", "1 sample left out: it is not finite"),
        *("vlm-lens types", "top_samples 10", "n 30", "Model tiny Samples 30"),
    ):
        assert expected in text, expected
    assert len(shown.figures) == 2
    assert {trace["type"] for trace in shown.figures[0]["data"]} == {"bar"}


def test_text_from_outside_is_only_text() -> None:
    parameters = {**types().parameters, "left_out": {"0": ATTACK}, "sites": [ATTACK]}
    shown = Page(
        html(
            types(parameters=parameters),
            about={ATTACK: ATTACK},
            notes=[ATTACK],
            options={ATTACK: ATTACK},
            command=ATTACK,
        )
    )
    assert_self_contained(shown)
    assert shown.count("img") == 0
    assert shown.count("script") == 2 + 2
    assert shown.text.count(ATTACK) > 6
    assert all("<" not in content for kind, content in shown.scripts if kind is not None)

"""The page of neuron types: it says what was found and how sure that is, and asks nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.page import Page, assert_self_contained
from vlm_lens.analyses.neuron_types_result import LABELS, NeuronTypes, SiteTypes
from vlm_lens.report import types_words as words
from vlm_lens.report.types import best, of_labels, of_sensitivity, render_types

ATTACK = "<script>alert(1)</script></script>\"'><img src=x onerror=alert(2)>"
NAME = "blocks.{}.mlp.hook_act"
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
        "model_name": "tiny",
        "options": {"n": 30},
        "command": "vlm-lens types",
    }
    return render_types(found, **(given | options))


# In words -----------------------------------------------------------------------------------------


def test_labels_are_told_most_first() -> None:
    assert words.headline(types(), "tiny") == (
        "The 4 neurons of tiny: 50% visual, 25% text, 25% unknown and 0% multi-modal"
    )


def test_labels_are_told_against_chance() -> None:
    expected, corrected = words.on_chance(types())
    assert (
        "at most 0 of 4 labels would be expected to have a p-value up to 0.05; 2 have" in expected
    )
    assert corrected.startswith("Corrected for their number 2 (50%) are more than chance")
    assert corrected.endswith("2 of 2 visual, 0 of 1 text and 0 of 1 unknown.")


def test_nothing_more_than_chance_is_told_as_such() -> None:
    found = types(sites={NAME.format(0): site((9, 1, 0, 0), (0, 6, 4, 0), tails=[0.3, 0.2])})
    *_, last = words.on_chance(found)
    assert last == "Corrected for their number, no label is more than chance."
    assert words.on_layers(found) == []
    assert "NaN" not in Page(html(found)).text


def test_high_confidence_and_silence_are_told() -> None:
    high, never = words.on_confidence(types())
    assert high.startswith("2 (50%) have a share above 0.8")
    assert never == "1 are never active, and so unknown."


def test_layers_with_the_largest_shares_are_told() -> None:
    [sentence] = words.on_layers(types())
    assert "visual in layer 0 (100%), text in layer 1 (100%) and unknown in layer 2" in sentence
    assert "multi-modal" not in sentence


def test_other_thresholds_are_told() -> None:
    [sentence] = words.on_thresholds(types())
    assert sentence.startswith(
        "At 2 other combinations of thresholds 25% to 75% of the neurons have another label"
    )
    assert "visual 0% to 75%, text 25% to 100%, multi-modal 0% to 0%" in sentence
    assert words.on_thresholds(types(tried=tried())) == ["No other thresholds were tried."]


# Tables and page ----------------------------------------------------------------------------------


def test_the_table_of_labels_counts_neurons() -> None:
    table = of_labels(types())
    assert table.rows == [
        ["visual", "2", "50%", "1", "2", "2", "0"],
        ["text", "1", "25%", "0", "0", "0", "0"],
        ["multi-modal", "0", "0%", "0", "0", "0", "0"],
        ["unknown", "1", "25%", "1", "0", "0", "1"],
        ["expected by chance, at most", "–", "–", "–", "0", "0", "–"],
    ]
    assert table.heads[3:6] == ["share above 0.8", "p ≤ 0.05", "more than chance, corrected"]


def test_thresholds_are_rows() -> None:
    table = of_sensitivity(types().sensitivity().to_dict("records"))
    assert table.rows[1] == ["3", "4", "3", "2", "25%", "75%", "0%", "0%", "25%"]


def test_the_surest_neurons_come_first() -> None:
    sure = site((7, 3, 0, 0), (8, 2, 0, 0), (9, 1, 0, 0), tails=[1e-15, 1e-30, 0.01])
    tables = best(types(sites={NAME.format(0): sure}))
    assert list(tables) == ["visual"]
    rows = [dict(zip(tables["visual"].heads, row, strict=True)) for row in tables["visual"].rows]
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
    for said in (
        *(words.headline(found, "tiny"), *words.on_chance(found), *words.on_thresholds(found)),
        *("2 samples left out: no image", "1 sample left out: it is not finite"),
        *("vlm-lens types", "top_samples 10", "n 30", "Samples 30 Neurons 4"),
    ):
        assert said in text, said
    assert len(shown.figures) == 2
    assert {trace["type"] for trace in shown.figures[0]["data"]} == {"bar"}


def test_text_from_outside_is_only_text() -> None:
    parameters = {**types().parameters, "left_out": {"0": ATTACK}, "sites": [ATTACK]}
    shown = Page(
        html(
            types(parameters=parameters),
            model_name=ATTACK,
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

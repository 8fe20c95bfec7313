"""The page of MINER: it says what was found, a null result too, escapes it, and asks nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from tests.page import Page, assert_self_contained
from vlm_lens.analyses import miner_words as words
from vlm_lens.analyses.mined import Mined, of_specificity
from vlm_lens.analyses.miner_curve import MaskingCurve
from vlm_lens.analyses.miner_scores import METRICS, ModalityScores
from vlm_lens.experiments import Matrix
from vlm_lens.neurons import NeuronSet
from vlm_lens.pages.tables import of_frame
from vlm_lens.studies.known import OWN as STUDIES
from vlm_lens.studies.options import read_study
from vlm_lens.studies.page import render_study

ATTACK = "<script>alert(1)</script></script>\"'><img src=x onerror=alert(2)>"
SITES = ("blocks.0.mlp.hook_act", "blocks.1.mlp.hook_act")
SIZES = dict.fromkeys(SITES, 100)
OWN = {"text": {SITES[0]: [0, 1, 2, 3]}, "image": {SITES[1]: [3, 4, 5], SITES[0]: [99]}}


def scores(**changes: Any) -> ModalityScores:
    importance = torch.rand(5, 3, 2, 100, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {
        "scores": dict(zip(SITES, importance.unbind(2), strict=True)),
        "method": "MINER",
        "axes": {"metric": METRICS, "modality": ("text", "image", "audio")},
        "n_samples": {"vqa": 8, "told": 4},
        "n_with": {
            "vqa": {"text": 8, "image": 8, "audio": 0},
            "told": {"text": 4, "image": 0, "audio": 0},
        },
        "parameters": {"split": "special_text_as_one", "left_out": {}},
        "notes": ("never in these data sets: audio",),
    }
    return ModalityScores(**(given | changes))


def found(*, own: dict[str, dict[str, list[int]]] | None = None, **changes: Any) -> Mined:
    selected = {
        name: NeuronSet.from_indices(indices, sizes=SIZES)
        for name, indices in (OWN if own is None else own).items()
    }
    given: dict[str, Any] = {
        "scores": scores(),
        "selected": selected,
        "ratio": 0.04,
        "strategy": "LA_MU",
        "weights": (0.0, 0.25, 0.25, 0.5, 0.0),
    }
    return Mined(**(given | changes))


def specificity(drops: dict[tuple[str, str], float], *, error: float = 0.02) -> Matrix:
    """Random neurons do up to 5 points of harm."""
    random = {"control": 0.02, "control_low": 0.0, "control_high": 0.05, "standard_error": error}
    rows = [
        {"masked": masked, "task": task, "n_neurons": 4, "clean": 0.9, "performance": 0.9 - drop}
        | {"drop": drop, "excess": drop - 0.02, "n_samples": 50, **random}
        for (masked, task), drop in drops.items()
    ]
    return Matrix(pd.DataFrame(rows))


def drops(**changed: float) -> dict[tuple[str, str], float]:
    every = {(m, t): 0.0 for m in ("text", "image") for t in ("vqa", "told")}
    return every | {(*name.split("_"),): drop for name, drop in changed.items()}


def curve(performance: dict[tuple[str, float], float], **parameters: Any) -> MaskingCurve:
    """One task that random neurons leave at 90% to 100%."""
    columns = ["task", "ratio", "masked", "control", "seed", "n_neurons", "performance"]
    rows: list[tuple[Any, ...]] = [("vqa", 0.0, "none", False, -1, 0, 1.0)]
    for (masked, ratio), value in performance.items():
        rows.append(("vqa", ratio, masked, False, -1, 7, value))
        rows += [("vqa", ratio, masked, True, seed, 7, 0.9 + seed / 10) for seed in (0, 1)]
    frame = pd.DataFrame(rows, columns=columns).assign(standard_error=0.02, n_samples=50)
    return MaskingCurve(frame, parameters)


def html(mined: Mined, **options: Any) -> str:
    given: dict[str, Any] = {
        "about": {"Model": "tiny"},
        "options": {"ratio": 0.04},
        "command": "vlm-lens miner",
    }
    return render_study(read_study(*STUDIES["miner"].split(":")), mined, **(given | options))


def told(mined: Mined) -> str:
    assert mined.specificity is not None
    return " ".join(words.on_specificity(mined.scores, mined.selected, mined.specificity))


def of_selection(mined: Mined) -> str:
    how: dict[str, Any] = {"strategy": mined.strategy, "ratio": mined.ratio}
    return " ".join(words.on_selection(mined.scores, mined.selected, **how))


# In words -----------------------------------------------------------------------------------------


def test_a_selection_alone_claims_nothing() -> None:
    mined = found()
    assert mined.headline() == "MINER selects 8 of 200 neurons for text and image"
    text = of_selection(mined)
    assert "LA_MU selects 4 for text and 4 for image, with a ratio of 4%" in text
    assert "0 for text (4 of 4) and 1 for image (3 of 4)" in text
    page = " ".join(Page(html(mined)).text.split())
    assert "was not measured: see --controls, which masks them" in page


def test_a_set_without_neurons_is_said() -> None:
    mined = found(own={"text": {SITES[0]: [0]}, "image": {}})
    assert "No neuron was selected for image" in of_selection(mined)
    assert mined.overlap is None
    assert "NaN" not in Page(html(mined)).text


def test_what_sets_share_is_told_against_chance() -> None:
    apart = found().overlap
    assert apart is not None
    assert words.on_overlap(apart) == [
        "No two sets share more neurons than chance would have them share."
    ]
    same = found(own={"text": OWN["image"], "image": OWN["image"]}).overlap
    assert same is not None
    [sentence] = words.on_overlap(same)
    assert sentence.startswith("text and image share 4 of 4 and 4 neurons (0.08 by chance, p = ")
    assert sentence.endswith("What is shared is not one modality's own.")


def test_no_harm_is_told_as_such() -> None:
    """Less than random neurons do, or within two standard errors of that."""
    mined = found(specificity=specificity(drops(text_vqa=0.08, image_told=-0.1)))
    assert mined.headline() == (
        "Masking MINER's 4% of the neurons does no more harm than masking random ones"
    )
    text = told(mined)
    assert "the model answers 90% of vqa and 90% of told" in text
    assert "that the model needs these neurons is not seen here" in text
    assert "Without the" not in text
    assert "specific to it" not in text


def test_harm_where_the_modality_is_and_only_there_is_told_as_such() -> None:
    mined = found(specificity=specificity(drops(image_vqa=0.5)))
    assert mined.headline().startswith("Masking those for image among MINER's 4%")
    text = told(mined)
    assert (
        "Without the 4 image neurons vqa goes from 90% to 40%, without as many random ones to 85% "
        "to 90%." in text
    )
    assert "In the other 3 of 4 cases random neurons of the same layers do as much harm" in text
    assert "In told, where there is no image, they are not missed" in text
    assert "Every data set has text" in text


def test_harm_where_the_modality_is_not_is_told_as_such() -> None:
    text = told(found(specificity=specificity(drops(image_vqa=0.5, image_told=0.3))))
    assert "There is no image in told, so these neurons are not image's alone." in text
    assert "not missed" not in text


def test_a_task_that_fails_anyway_has_nothing_to_lose() -> None:
    result = specificity(drops())
    frame = result.frame.assign(clean=[0.0, 0.9, 0.0, 0.9])
    assert "In vqa there is nothing to lose." in told(
        found(specificity=replace(result, frame=frame))
    )


def test_a_curve_says_where_harm_begins() -> None:
    measured = {("text", 0.02): 0.88, ("text", 0.05): 0.5, ("all", 0.1): 0.25}
    text = " ".join(words.on_curve(curve(measured)))
    assert "In 2 of 3 cases selected neurons do more harm" in text
    assert "first with a ratio of 5%, where without the 7 neurons of text vqa is at 50%" in text
    assert "without random ones at 90% to 100%" in text
    assert "With all that a ratio of 10% selects masked, vqa is at 25%" in text
    [null] = words.on_curve(curve({("text", 0.02): 0.88, ("all", 0.1): 1.0}))
    assert null.startswith("In none of 2 cases, with ratios up to 10%")
    assert words.on_curve(curve({})) == ["Nothing was masked: the ratios are too small."]


def test_a_complement_says_what_is_left() -> None:
    text = " ".join(words.on_complement(curve({("text", 0.1): 0.95, ("all", 0.1): 0.0})))
    assert "In 0 of 2 cases the model does better with the selected neurons alone" in text
    assert "10% selects left, all others masked, vqa is at 0% (with random ones 90% to" in text


@pytest.mark.parametrize(("performance", "is_worse"), [(0.87, False), (0.85, True), (1.0, False)])
def test_two_standard_errors_below_all_controls_is_more_harm(
    performance: float, is_worse: bool
) -> None:
    [case] = words.cases_of(curve({("text", 0.1): performance}))
    assert case.random == [0.9, 1.0]
    assert case.is_worse == is_worse
    assert not case.is_better


def test_a_data_set_that_mixes_is_told() -> None:
    """As the scores' own notes are; what a data set never or always has is no mixture."""
    counts = {"text": 8, "image": 5, "audio": 0}
    mixed = found(scores=scores(n_samples={"vqa": 8}, n_with={"vqa": counts}))
    assert mixed.notes == (
        "never in these data sets: audio",
        "3 of 8 samples of 'vqa' have no image, and count as 0 for it: as a data set of their own "
        "they would not",
    )
    assert found().notes == ("never in these data sets: audio",)
    assert mixed.notes[1] in Page(html(mixed)).text


# Tables and page ----------------------------------------------------------------------------------


def test_tables_are_those_of_the_results() -> None:
    mined = found(specificity=specificity(drops(image_vqa=0.5)))
    rows = [["0", "4", "1"], ["1", "0", "3"], ["all", "4", "4"]]
    assert of_frame(mined.table()).rows == rows
    asked = mined.sections()[0].table
    assert asked is not None
    assert of_frame(asked).rows == [["vqa", "8", "8", "8"], ["told", "4", "4", "0"]]
    assert mined.specificity is not None
    row = of_frame(of_specificity(mined.specificity)).rows[2]
    assert row == [
        *("image", "vqa", "4", "90%", "40%", "50", "2", "88%", "85% to 90%", "yes"),
    ]


def test_the_page_shows_what_was_found() -> None:
    measured = {("text", 0.05): 0.5, ("all", 0.1): 0.25}
    mined = found(
        specificity=specificity(drops(image_vqa=0.5)),
        curve=curve(measured),
        complement=curve(measured, complement=True),
    )
    shown = Page(html(mined, options={"n": 8, "seeds": [0, 1], "nested": {"deep": "value"}}))
    assert_self_contained(shown)
    text = " ".join(shown.text.split())
    for said in (mined.headline(), told(mined), *mined.notes, "vlm-lens miner"):
        assert said in text
    assert "nested · deep value" in text
    assert "split special_text_as_one" in text
    assert len(shown.figures) == 5
    titles = [figure["layout"]["title"]["text"] for figure in shown.figures]
    assert ["all but" in title for title in titles] == [False, False, False, False, True]
    assert text.count(" blocks.0.mlp.hook_act ") + text.count(" blocks.1.mlp.hook_act ") >= 20


def test_nothing_masked_is_not_drawn() -> None:
    shown = Page(html(found(specificity=specificity(drops()), curve=curve({}))))
    assert len(shown.figures) == 3
    assert "Nothing was masked" in shown.text


def test_text_from_outside_is_only_text() -> None:
    own = {ATTACK: OWN["text"], "image": OWN["image"]}
    named = scores(
        scores={name: torch.rand(5, 2, 100) for name in SITES},
        axes={"metric": METRICS, "modality": (ATTACK, "image")},
        n_samples={ATTACK: 8},
        n_with={ATTACK: {ATTACK: 8, "image": 8}},
        notes=(ATTACK,),
        parameters={ATTACK: ATTACK},
    )
    attacked = specificity({(ATTACK, ATTACK): 0.5, ("image", ATTACK): 0.0})
    lines = curve({(ATTACK, 0.05): 0.5, ("all", 0.1): 0.25})
    mined = found(own=own, scores=named, specificity=attacked, curve=lines)
    shown = Page(html(mined, about={ATTACK: ATTACK}, options={ATTACK: ATTACK}, command=ATTACK))
    assert_self_contained(shown)
    assert shown.count("img") == 0
    assert shown.count("script") == 2 + 4
    assert shown.text.count(ATTACK) > 10
    assert all("<" not in content for kind, content in shown.scripts if kind is not None)

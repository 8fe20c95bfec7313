"""The page of explained neurons: its numbers, its sheets, and that it only shows texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.page import Page, assert_self_contained
from tests.tiny import picture
from vlm_lens.analyses.exemplars import Exemplar, Exemplars, SampleView
from vlm_lens.analyses.explaining.explained import ExplainedNeuron
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.scoring import Score
from vlm_lens.analyses.explanations import Explanations
from vlm_lens.data import Sample
from vlm_lens.neurons import Neuron
from vlm_lens.report.explain import best_table, layer_table, render_explanations
from vlm_lens.report.explain_words import against_others, headline, sentences

ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


def explained(
    scores: list[float], *, shuffled: float = 0.1, text: str = "red things", token: str = "red"
) -> Explanations:
    """Neurons of two layers with these scores; each other explanation scores `shuffled`."""
    view = SampleView(
        number=3,
        sample=Sample(images=[picture(0, size=(20, 20))], text=f"a {token}"),
        kinds=("image", "text", "text"),
        tokens=("", "a", token),
        roles=("prompt",) * 3,
        image_index=np.array([0, -1, -1]),
        boxes=np.array([[0.0, 0.0, 10.0, 10.0], [np.nan] * 4, [np.nan] * 4]),
    )
    values = np.array([10.0, 0.0, 5.0])
    neurons = []
    for index, score in enumerate(scores):
        neuron = Neuron(f"blocks.{index % 2}.mlp.hook_act", index)
        seen = Exemplars(neuron, (Exemplar(view, values),), (), 2.5)
        held_out = Exemplars(neuron, (Exemplar(view, values, values / 2),), (), 2.5)
        number = Score(pearson=score, spearman=score / 2, image=score, text=0.0, positions=3)
        neurons.append(ExplainedNeuron(Explanation(text), number, seen, held_out))
    n = len(scores)
    chance = np.full((max(n - 1, 0), n), shuffled)
    return Explanations(
        tuple(neurons), chance, parameters={"n_samples": 8}, notes=(text,) * (n > 0)
    )


def page(found: Explanations, **options: str) -> Page:
    return Page(html(found, **options))


def html(found: Explanations, **options: str) -> str:
    given = {"model_name": "my-model", "command": "vlm-lens explain --n 8", **options}
    return render_explanations(found, **given)


SCORES = [0.9, 0.2, 0.7, 0.5, 0.6, 0.4, 0.3, -0.25]


def test_the_numbers_are_on_the_page():
    found = explained(SCORES)
    shown = page(found)
    assert headline(found) == "8 neurons explained: mean score 0.42, 0.10 by chance"
    for text in (headline(found), *sentences(found), "my-model", "vlm-lens explain --n 8"):
        assert text in shown.text, text
    assert "red things" in found.notes[0]
    for neuron in found:
        assert str(neuron) in shown.text
    rows = layer_table(found).rows
    assert [row[:3] for row in rows] == [["language_model", str(i), "4"] for i in range(2)]
    assert [float(row[3]) for row in rows] == pytest.approx(
        [np.mean(SCORES[0::2]), np.mean(SCORES[1::2])], rel=1e-3
    )


def test_the_best_are_shown_and_the_worst_one():
    found = explained(SCORES)
    shown = html(found)
    sheets = shown.split('<article class="card sheet">')[1:]
    heads = [sheet.split("<b>")[1].split("</b>")[0] for sheet in sheets]
    order = [0, 2, 4, 3, 5, 7]
    assert heads == [f"blocks.{i % 2}.mlp.hook_act[{i}]" for i in order]
    assert "score 0.90; with explanations of other neurons 0.10" in sheets[0]
    assert "The worst" in sheets[-1]
    assert "The worst" not in "".join(sheets[:-1])
    assert all(sheet.count("<svg") >= 2 for sheet in sheets)  # true, and predicted
    assert "The worst" not in html(explained([0.5, 0.4]))


def test_how_many_are_better_than_chance_and_what_so_few_can_say():
    few = sentences(explained(SCORES))
    assert "0 of 8 (0%)" in few[1]
    assert "With 7 other explanations p is 0.12 at least" in few[2]
    assert few[2].endswith("as there are too few.")
    many = sentences(explained([0.5] * 30 + [0.0] * 10))
    assert "30 of 40 (75%)" in many[1]
    assert many[2].endswith("p is 0.025 at least, so that none can count as better unless 20 do.")


def test_one_neuron_has_no_chance_level():
    found = explained([0.5])
    assert headline(found) == "1 neuron explained: mean score 0.50"
    assert against_others(found, Neuron("blocks.0.mlp.hook_act", 0)).endswith("is 0.50.")
    assert "By layer" in page(found).text
    assert "better than" not in " ".join(sentences(found))


def test_nothing_explained_is_a_page_too():
    neuron = Neuron("blocks.0.mlp.hook_act", 5)
    found = Explanations((), np.zeros((0, 0)), skipped={neuron: f"it refuses {ATTACK}"})
    shown = page(found)
    assert "No neuron was explained" in shown.text
    assert str(neuron) in shown.text
    assert ATTACK in shown.text
    assert shown.count("article") == 0
    assert layer_table(found).rows == []


def test_nothing_is_loaded_and_nothing_runs():
    shown = page(explained(SCORES))
    assert_self_contained(shown)
    assert shown.count("script") == 0


def test_text_from_outside_is_only_text():
    found = explained(SCORES, text=ATTACK, token=ATTACK)
    shown = page(found, model_name=ATTACK, command=ATTACK)
    assert_self_contained(shown)
    assert shown.count("script") == 0
    assert all(
        (given["src"] or "").startswith("data:") for tag, given in shown.elements if tag == "img"
    )
    assert ATTACK in shown.text
    assert "<script" not in html(found, model_name=ATTACK, command=ATTACK)


def test_what_is_saved_gives_the_same_page(tmp_path: Path):
    found = explained(SCORES)
    found.save(tmp_path)
    view = found.neurons[0].exemplars.top[0].view
    blank = Sample(images=[], text="another one")
    samples = [blank, blank, blank, view.sample]
    assert html(Explanations.load(tmp_path, samples=samples)) == html(found)


def test_the_terminal_cuts_long_explanations():
    table = best_table(explained([0.5, 0.4], text="red\nthings " * 20))
    said = [row[-1] for row in table.rows]
    assert all(len(text) == 60 and text.endswith("…") and "\n" not in text for text in said)
    assert "\n" not in str(table.rows)

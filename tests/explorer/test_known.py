"""What is known of a neuron: lines from results, and its top samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.explorer.conftest import QUESTION
from tests.explorer.test_page import data_of
from vlm_lens import HookedVLM, Sample, load_samples
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.analyses.exemplars import Exemplar, Exemplars, SampleView
from vlm_lens.analyses.explaining.explained import ExplainedNeuron
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.scoring import Score
from vlm_lens.analyses.explanations import Explanations
from vlm_lens.analyses.miner_scores import METRICS, ModalityScores
from vlm_lens.analyses.neuron_types_labels import SiteTypes
from vlm_lens.analyses.neuron_types_result import NeuronTypes
from vlm_lens.explorer import explore
from vlm_lens.explorer.cards import N_CARDS, Cards
from vlm_lens.explorer.facts import Fact, Results
from vlm_lens.explorer.requests import picture
from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.statistics import NeuronStatistics, collect

NAME = "blocks.1.mlp.hook_act"
NEURON = Neuron(NAME, 1)
TOWER = "vision_encoder.blocks.1.mlp.hook_post"


def only(results: Results, neuron: Neuron = NEURON) -> Fact:
    [fact] = results.about(neuron)
    return fact


def test_types() -> None:
    counts = torch.tensor([[9, 1], [0, 2], [1, 7], [0, 0]])
    site = SiteTypes(counts, torch.ones(2), torch.tensor([[0.001, 1.0]] * 4))
    types = NeuronTypes({NAME: site}, {"high_confidence": 0.8, "alpha": 0.05, "n_samples": 30})
    results = Results(types=types)
    assert only(results) == Fact("type", "multi-modal", "70% of its top samples; could be chance")
    assert only(results, Neuron(NAME, 0)).detail == "90% of its top samples; more than chance"
    assert results.about(Neuron("blocks.2.mlp.hook_act", 0)) == []


def test_modalities_of_scores_and_of_sets() -> None:
    scores = ModalityScores(
        {NAME: torch.tensor([[0.2, 1.0], [0.9, 0.0]]).expand(5, 2, 2)},
        "MINER",
        axes={"metric": METRICS, "modality": ("text", "image")},
        n_samples={"demo": 3},
        n_with={"demo": {"text": 3, "image": 2}},
    )
    label = "modality (MINER)"
    found = only(Results(modalities=scores))
    assert found == Fact(label, "text", "importance: text 1.00, image 0.00")
    assert only(Results(modalities=scores), Neuron(NAME, 0)).text == "image"
    sets = {"image": NeuronSet([NEURON]), "text": NeuronSet([NEURON]), "audio": NeuronSet()}
    assert only(Results(modalities=sets)) == Fact(label, "image, text")
    assert Results(modalities=sets).about(Neuron(NAME, 2)) == []


def test_criticality() -> None:
    found = CriticalNeurons(
        method="CAN",
        k=2,
        ranking=NeuronSet.from_indices({NAME: [7, 1, 5]}),
        is_monotone=True,
        curve=(Measurement(0, {}), Measurement(2, {}, True)),
        stages=Stages(1, 2, ""),
    )
    results = Results(critical=found)
    expected = Fact("criticality (CAN)", "rank 2 of 3", "among the 2 critical ones")
    assert only(results) == expected
    assert only(results, Neuron(NAME, 5)).detail == "the first 2 suffice"
    assert results.about(Neuron(NAME, 9)) == []
    none = replace(found, k=None)
    assert only(Results(critical=none)).detail == "no collapse was found"


# Top samples ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return load_samples("shapes-llava", n=9)


@pytest.fixture(scope="module")
def statistics(shapes: HookedVLM, samples: list[Sample]) -> NeuronStatistics:
    return collect(shapes, samples, sites=[NAME, TOWER], top_k=8)


def test_statistics_say_what_is_usual(statistics: NeuronStatistics) -> None:
    facts = {fact.label: fact for fact in Results(statistics=statistics).about(NEURON)}
    assert set(facts) == {"over image", "over text", "over special"}
    largest = float(statistics.max[NAME]["image"][1])
    assert facts["over image"].text.endswith(f"largest {largest:.3g}")
    assert "of 576 positions, 9 samples" in facts["over image"].detail


@pytest.mark.full
@pytest.mark.parametrize("name", [NAME, TOWER])
def test_top_samples_and_where_in_them(
    shapes: HookedVLM, samples: list[Sample], statistics: NeuronStatistics, name: str
) -> None:
    """The card's box, or its token, is where a forward of that sample alone has its maximum."""
    inputs = shapes.prepare(images=samples[0].images, text=samples[0].text)
    explorer = explore(shapes, inputs, statistics=statistics, samples=samples, effects=False)
    requests, n_text = explorer._requests, 0
    for index in range(0, 60, 5):
        cards = requests.cards.of(Neuron(name, index), requests.layers.spaces[name])
        assert len(cards) == N_CARDS
        assert [card.value for card in cards] == sorted((c.value for c in cards), reverse=True)
        card = cards[0]
        asked = samples[card.number]
        given = shapes.prepare(images=asked.images, text=asked.text)
        _, cache = shapes.run_with_cache(given, names_filter=name)
        values = cache[name][0, :, index]
        assert card.value == pytest.approx(float(values.max()), abs=1e-4)
        place, token_map = int(values.argmax()), given.token_map[0]
        if name == TOWER and place == 0:
            assert card.tokens[0] == ("class", 1.0)
        elif name == TOWER or token_map.modality[place] == "image":
            box = token_map.patch_box(place) if name == TOWER else token_map.box(place)
            assert card.boxes == ((box, 1.0),)
            x0, y0, x1, y1 = card.crop or (0, 0, 0, 0)
            assert x0 <= box[0] < box[2] <= x1
            assert y0 <= box[1] < box[3] <= y1
        else:
            n_text += 1
            assert (token_map.tokens[place], 1.0) in card.tokens
    assert n_text or name == TOWER


def test_other_samples_than_those_of_the_statistics_are_noticed(
    shapes: HookedVLM, samples: list[Sample], statistics: NeuronStatistics
) -> None:
    inputs = shapes.prepare(text=QUESTION)
    explorer = explore(shapes, inputs, statistics=statistics, samples=samples[:1], effects=False)
    with pytest.raises(IndexError, match="pass those that the statistics were collected on"):
        explorer._requests.cards.of(NEURON, explorer._requests.layers.spaces[NAME])


def explanations(shapes: HookedVLM, sample: Sample) -> Explanations:
    """One explained neuron, with the values 0, 1, ... over an image's two patches and two words."""
    boxes = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [np.nan] * 4, [np.nan] * 4], dtype=np.float64)
    view = SampleView(
        number=3,
        sample=sample,
        kinds=("image", "image", "text", "text"),
        tokens=("<image>", "<image>", "a", "red"),
        roles=("prompt",) * 4,
        image_index=np.array([0, 0, -1, -1]),
        boxes=boxes,
    )
    one = Exemplar(view, np.array([0.0, 10.0, 2.5, 5.0]))
    exemplars = Exemplars(NEURON, (one,), (), 4.0)
    score = Score(pearson=0.61, spearman=0.5)
    explained = ExplainedNeuron(Explanation("red things"), score, exemplars, exemplars)
    skipped = {Neuron(NAME, 2): "it is never active"}
    return Explanations((explained,), np.zeros((0, 1)), skipped=skipped)


def test_explanations_and_their_exemplars(shapes: HookedVLM, samples: list[Sample]) -> None:
    known = explanations(shapes, samples[0])
    assert only(Results(explanations=known)) == Fact(
        "explanation", "red things", "predicts held-out samples with a correlation of 0.61"
    )
    assert only(Results(explanations=known), Neuron(NAME, 2)).detail == "it is never active"
    inputs = shapes.prepare(images=samples[0].images, text=samples[0].text)
    explorer = explore(shapes, inputs, explanations=known, effects=False)
    found, _ = explorer._requests({"kind": "neuron", "name": NAME, "index": 1})
    [card] = found["cards"]
    assert (card["number"], card["value"]) == (3, 4.0)
    assert card["boxes"] == [[8, 0, 16, 8]]  # the other patch is not active
    assert card["shares"] == [1.0]
    assert card["crop"] == [0, 0, 24, 16]
    assert card["tokens"] == [["a", 0.25], ["red", 0.5]]
    assert card["picture"]["uri"].startswith("data:image/png")
    assert [fact["text"] for fact in found["facts"]] == ["red things"]


def test_a_large_picture_is_made_smaller() -> None:
    shown = picture(Image.new("RGB", (1600, 800)), longest=160)
    assert (shown["width"], shown["height"]) == (1600, 800)  # boxes are in its own pixels
    assert len(shown["uri"]) < 2000


@pytest.mark.full
def test_a_page_holds_what_is_known_as_far_as_it_fits(
    shapes: HookedVLM,
    samples: list[Sample],
    statistics: NeuronStatistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are shown or kept first; each picture once."""
    inputs = shapes.prepare(images=samples[0].images, text=samples[0].text)
    known = {"statistics": statistics, "samples": samples}
    explorer = explore(shapes, inputs, neuron=Neuron(NAME, 9), effects=False, **known)
    explorer.selection = [Neuron(NAME, 300)]
    for room, n in ((30_000, 4), (2_000_000, 40)):
        monkeypatch.setattr("vlm_lens.explorer.page._KNOWN", room)
        monkeypatch.setattr("vlm_lens.explorer.page._BUDGET", 0)
        explorer.to_html(tmp_path / "page.html", names=NAME, neurons=40)
        data = data_of((tmp_path / "page.html").read_text(encoding="utf-8"))
        found = data["known"][NAME]
        with_cards = [int(index) for index, about in found.items() if about["cards"]]
        assert {9, 300} <= set(with_cards)
        assert (len(with_cards) == 40) == (n == 40)
        assert ("fits into the page" in data["note"]) == (n < 40)
        uris = [shown["uri"] for shown in data["pictures"]]
        assert len(set(uris)) == len(uris) <= len(samples)
        assert sum(len(json.dumps(about["cards"])) for about in found.values()) < room
    expected, _ = explorer._requests({"kind": "neuron", "name": NAME, "index": 9})
    places = [card["picture"] for card in found["9"]["cards"]]
    shown = [None if place is None else data["pictures"][place] for place in places]
    assert shown == [card["picture"] for card in expected["cards"]]


def test_without_results_there_are_no_cards(shapes: HookedVLM) -> None:
    explorer = explore(shapes, shapes.prepare(text=QUESTION), effects=False)
    space = explorer._requests.layers.spaces[NAME]
    assert Cards(shapes).of(NEURON, space) == []

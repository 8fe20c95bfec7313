"""From a model and samples to scored explanations: planted neurons, chance, failures, files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import pearsonr

from tests.analyses.chat_server import chat_server
from tests.analyses.planted_modality import PLANTS, Planted, planted
from vlm_lens import HookedVLM, Neuron, NeuronSet, Sample
from vlm_lens.analyses import simulate
from vlm_lens.analyses.chat import Chat
from vlm_lens.analyses.explain import (
    Concept,
    CostWarning,
    Exemplars,
    Explanation,
    Explanations,
    ReplyError,
    SampleView,
    Term,
    by_chat,
    concepts,
    explain,
)
from vlm_lens.passes import SamplesLeftOutWarning
from vlm_lens.shapes_llava.world import make_samples

OTHERS = [Neuron(f"blocks.{layer}.mlp.hook_act", 40 + layer) for layer in range(6)]


@pytest.fixture(scope="module")
def plants() -> Planted:
    return planted(n=48)


@pytest.fixture(scope="module")
def found(plants: Planted) -> Explanations:
    neurons = [plants.image, plants.text, plants.both, *OTHERS]
    return explain(plants.model, plants.samples, neurons)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [s for task in ("image", "text") for s in make_samples(task=task, n=6)]


# What is found ------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("kind", list(PLANTS))
def test_planted_neurons_are_explained_and_score_high(
    plants: Planted, found: Explanations, kind: str
):
    one = found[getattr(plants, kind)]
    assert "red" in one.explanation.text
    assert ("patches" in one.explanation.text) == (kind != "text")
    assert ("tokens" in one.explanation.text) == (kind != "image")
    assert one.score.pearson > 0.6
    chance = found.shuffled[:, list(found).index(one.neuron)]
    assert one.score.pearson > np.median(chance) + 0.4


def test_scores_are_those_of_a_slow_loop(found: Explanations):
    for one in found.neurons:
        said = {term.concept: term.level for term in one.explanation.terms}
        predicted, true = [], []
        for exemplar in one.held_out.every:
            for place, kind in enumerate(exemplar.view.kinds):
                levels = [
                    level
                    for concept, level in said.items()
                    if simulate.concepts_of(exemplar.view)[concept][place]
                ]
                predicted.append(max(levels, default=one.explanation.elsewhere[kind]))
                true.append(exemplar.values[place])
        assert one.score.pearson == pytest.approx(pearsonr(predicted, true).statistic)


def test_the_explanations_of_others_are_scored_on_the_same_samples(found: Explanations):
    n = len(found)
    assert found.shuffled.shape == (n - 1, n)
    simulator = simulate.by_concepts()
    for i, one in enumerate(found.neurons):
        slow = []
        for other in found.neurons:
            if other is not one:
                predicted = [simulator(other.explanation, e.view) for e in one.held_out.every]
                slow.append(pearsonr(np.concatenate(predicted), one.held_out.values).statistic)
        np.testing.assert_allclose(sorted(found.shuffled[:, i]), sorted(slow), atol=1e-9)


def test_the_table_says_all_of_it_best_first(found: Explanations, plants: Planted):
    frame = found.to_dataframe()
    assert frame["score"].is_monotonic_decreasing
    row = frame[frame["neuron"] == str(plants.text)].iloc[0]
    place = list(found).index(plants.text)
    assert row["score"] == found[plants.text].score.pearson
    assert row["shuffled"] == pytest.approx(found.shuffled[:, place].mean())
    assert row["difference"] == pytest.approx(row["score"] - row["shuffled"])
    assert row["p"] == found.p_values[place]
    assert frame["better"].mean() == found.share_better
    assert not frame["score"].isna().any()
    by_layer = found.table()
    assert by_layer["layer"].tolist() == list(range(6))
    assert by_layer["neurons"].sum() == len(found)


@pytest.mark.full
def test_shuffled_explanations_of_random_neurons_predict_next_to_nothing(shapes: HookedVLM):
    rng = np.random.default_rng(0)
    names = [f"blocks.{layer}.mlp.hook_act" for layer in range(6)]
    neurons = NeuronSet.from_indices({name: rng.choice(384, 5, replace=False) for name in names})
    samples = [s for task in ("image", "text") for s in make_samples(task=task, n=20, seed=3)]
    some = explain(shapes, samples, neurons, top=5, random=5)
    assert abs(some.shuffled.mean()) < 0.1
    assert some.scores.mean() > some.shuffled.mean() + 0.2


def test_a_neuron_alone_has_no_chance_level(shapes: HookedVLM, samples: list[Sample]):
    one = explain(shapes, samples, OTHERS[:1], top=3, random=3)
    assert one.shuffled.shape == (0, 1)
    frame = one.to_dataframe()
    assert pd.isna(frame["shuffled"][0])
    assert frame["p"][0] == 1.0
    assert one.share_better == 0.0
    assert any("one neuron only" in note for note in one.notes)
    assert "better" not in repr(one)


def test_vision_neurons_are_explained_by_their_patches(shapes: HookedVLM):
    samples = make_samples(task="image", n=12)
    neurons = [Neuron("vision_encoder.blocks.1.mlp.hook_post", i) for i in range(3)]
    some = explain(shapes, samples, neurons, top=3, random=3)
    frame = some.to_dataframe()
    assert frame["text"].isna().all()
    assert frame["image"].notna().all()
    assert not any("tokens" in said for said in frame["explanation"])


# Functions of one's own ---------------------------------------------------------------------------


def test_explainer_and_simulator_may_be_any_functions(shapes: HookedVLM, samples: list[Sample]):
    seen = []

    def explainer(exemplars: Exemplars) -> Explanation:
        seen.append(exemplars)
        return Explanation(f"neuron {exemplars.neuron.index}")

    def simulator(explanation: Explanation, view: SampleView) -> np.ndarray:
        assert explanation.text.startswith("neuron")
        return np.arange(len(view), dtype=np.float64)

    some = explain(
        shapes, samples, OTHERS[:2], explainer=explainer, simulator=simulator, top=2, random=2
    )
    assert [one.neuron for one in seen] == OTHERS[:2]
    assert all(len(one.top) <= 2 for one in seen)
    assert some.parameters["explainer"] == {"function": "explainer"}
    assert some.parameters["simulator"] == {"function": "simulator"}


def test_words_need_a_simulator_that_reads_them(shapes: HookedVLM, samples: list[Sample]):
    asked = []
    with pytest.raises(ValueError, match=r"pass simulator="):
        explain(shapes, samples, OTHERS, explainer=lambda e: asked.append(e))  # type: ignore[arg-type,return-value]
    assert not asked
    with chat_server() as server, pytest.raises(ValueError, match=r"pass simulator="):
        explain(
            shapes,
            samples,
            OTHERS,
            explainer=by_chat(Chat(server.url, "tiny")),
            simulator=simulate.by_concepts(),
        )


def test_constant_predictions_score_0_with_a_note(shapes: HookedVLM, samples: list[Sample]):
    some = explain(
        shapes, samples, OTHERS[:3], simulator=lambda _, view: np.zeros(len(view)), top=2, random=2
    )
    assert some.scores.tolist() == [0.0] * 3
    assert some.share_better == 0.0
    assert any("3 neurons have a score of 0" in note for note in some.notes)
    assert not some.to_dataframe()[["score", "spearman", "p"]].isna().any(axis=None)


def test_an_explainer_that_returns_something_else_is_refused(
    shapes: HookedVLM, samples: list[Sample]
):
    with pytest.raises(TypeError, match="expected the explainer to return an Explanation, got 'x'"):
        explain(
            shapes,
            samples,
            OTHERS[:1],
            explainer=lambda _: "x",  # type: ignore[arg-type,return-value]
            simulator=lambda _, view: np.zeros(len(view)),
            top=2,
            random=2,
        )


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": []}, "at least one neuron"),
        ({"samples": []}, "at least two samples"),
        ({"shuffles": -1}, "shuffles"),
        ({"alpha": 0}, "alpha"),
        ({"top": 0}, "top"),
        ({"held_out": 1}, "held_out"),
        ({"answers": "mine"}, "answers"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(
    shapes: HookedVLM, samples: list[Sample], options: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        explain(shapes, **{"samples": samples, "neurons": OTHERS, **options})


def test_samples_and_neurons_that_do_not_count_are_named_with_reasons(
    shapes: HookedVLM, samples: list[Sample], tmp_path: Path
):
    path = tmp_path / "cut.png"
    samples[0].images[0].save(path)
    path.write_bytes(path.read_bytes()[:200])
    broken = Sample([Image.open(path)], "what color ?")

    def explainer(exemplars: Exemplars) -> Explanation:
        if exemplars.neuron == OTHERS[1]:
            raise ReplyError("it refuses")
        return concepts()(exemplars)

    with pytest.warns(SamplesLeftOutWarning):
        some = explain(
            shapes,
            [*samples, broken],
            OTHERS[:3],
            explainer=explainer,
            simulator=simulate.by_concepts(),
            top=2,
            random=2,
        )
    assert list(some) == [OTHERS[0], OTHERS[2]]
    assert some.skipped == {OTHERS[1]: "it refuses"}
    assert some.notes[0].startswith("1 sample was left out, first of all 12:")
    assert some.notes[1].startswith(f"1 neuron was left out, first of all {OTHERS[1]}: it ref")
    with pytest.raises(KeyError, match="was not explained: it refuses"):
        some[OTHERS[1]]
    with pytest.raises(KeyError, match="not asked for"):
        some[OTHERS[5]]


def test_no_hook_is_left_when_an_explainer_fails(shapes: HookedVLM, samples: list[Sample]):
    def explainer(_: Exemplars) -> Explanation:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain(
            shapes,
            samples,
            OTHERS[:1],
            explainer=explainer,
            simulator=simulate.by_concepts(),
            top=2,
            random=2,
        )
    assert not any(tap.has_hooks() for tap in shapes.hook_dict.values())


# Files --------------------------------------------------------------------------------------------


def test_results_survive_a_file(found: Explanations, plants: Planted, tmp_path: Path):
    found.save(tmp_path, shown=2)
    again = Explanations.load(tmp_path, samples=plants.samples)
    pd.testing.assert_frame_equal(again.to_dataframe(), found.to_dataframe())
    assert again.summary() == found.summary()
    assert again.parameters == json.loads(json.dumps(found.parameters))
    for one, other in zip(found.neurons, again.neurons, strict=True):
        assert other.score == one.score
        assert other.explanation.terms == one.explanation.terms
        for mine, theirs in ((one.exemplars, other.exemplars), (one.held_out, other.held_out)):
            assert len(theirs.top) == min(2, len(mine.top))
            for a, b in zip(mine.top, theirs.top, strict=False):
                np.testing.assert_array_equal(a.values, b.values)
                assert (a.view.tokens, a.view.kinds) == (b.view.tokens, b.view.kinds)
                np.testing.assert_array_equal(a.view.boxes, b.view.boxes)
                if a.predicted is not None:
                    np.testing.assert_array_equal(a.predicted, b.predicted)
    assert again.plot(plants.image, n=2).html == found.plot(plants.image, n=2).html


def test_without_samples_a_sheet_has_no_pictures(
    found: Explanations, plants: Planted, tmp_path: Path
):
    found.save(tmp_path)
    assert "<image " in found.plot(plants.image).html
    html = Explanations.load(tmp_path).plot(plants.image).html
    assert "<image " not in html
    assert "<svg" in html


def test_other_samples_are_refused(found: Explanations, plants: Planted, tmp_path: Path):
    found.save(tmp_path)
    for wrong in (plants.samples[::-1], plants.samples[:3]):
        with pytest.raises(ValueError, match="is not the one that was explained"):
            Explanations.load(tmp_path, samples=wrong)


def test_a_file_with_something_missing_is_refused(found: Explanations, tmp_path: Path):
    found.save(tmp_path)
    path = tmp_path / "explanations.json"
    content = json.loads(path.read_text())
    del content["fields"]["neurons"][0]["score"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"Write it with Explanations\.save"):
        Explanations.load(tmp_path)


def test_files_hold_no_pictures(found: Explanations, tmp_path: Path):
    found.save(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2e6
    assert "base64" not in (tmp_path / "explanations.json").read_text()


# Showing ------------------------------------------------------------------------------------------


def test_results_say_what_they_are(found: Explanations, plants: Planted):
    assert repr(found).startswith(f"Explanations({len(found)} neurons, mean score 0.")
    assert "better than chance" in str(found)
    assert str(plants.text) in str(found)
    assert "<table" in found._repr_html_()


def test_what_a_model_says_is_escaped(shapes: HookedVLM, samples: list[Sample]):
    evil = "<script>alert(1)</script>"
    some = explain(
        shapes,
        samples,
        OTHERS[:2],
        explainer=lambda _: Explanation(evil),
        simulator=lambda _, view: np.arange(len(view), dtype=np.float64),
        top=2,
        random=1,
    )
    for html in (some._repr_html_(), some.plot().html):
        assert evil not in html
        assert "&lt;script&gt;" in html


def test_without_any_neuron_there_is_still_a_result():
    none = Explanations((), np.zeros((0, 0)), skipped={OTHERS[0]: "silent"})
    assert repr(none) == "Explanations(no neuron explained, 1 skipped)"
    assert len(none.to_dataframe()) == len(none.table()) == 0
    assert none.share_better == 0.0
    assert "1 skipped" in none._repr_html_()
    with pytest.raises(ValueError, match="no neuron was explained"):
        none.plot()


def test_shuffled_scores_must_fit_the_neurons():
    with pytest.raises(ValueError, match="a column of shuffled scores for each of 0 neurons"):
        Explanations((), np.zeros((3, 2)))


def test_progress_is_told(shapes: HookedVLM, samples: list[Sample]):
    batches, neurons = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("error", CostWarning)
        explain(
            shapes,
            samples,
            OTHERS[:2],
            top=2,
            random=1,
            on_batch=lambda *at: batches.append(at),
            on_neuron=lambda *at: neurons.append(at),
        )
    assert batches[-1][0] == batches[-1][1]
    assert neurons == [(1, 2), (2, 2), (1, 2), (2, 2)]


def test_an_interrupted_run_goes_on_to_the_same_result(
    shapes: HookedVLM, samples: list[Sample], tmp_path: Path
):
    def run(on_batch=None, checkpoint=None) -> Explanations:
        return explain(
            shapes,
            samples,
            OTHERS[:2],
            top=2,
            random=1,
            batch_size=4,
            checkpoint=checkpoint,
            on_batch=on_batch,
        )

    def interrupt(*at: int) -> None:
        seen.append(at)
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    seen: list[tuple[int, ...]] = []
    stop_after = -(-len(samples) // 2 // 4) + 1  # in the second pass
    with pytest.raises(KeyboardInterrupt):
        run(interrupt, tmp_path)
    again: list[tuple[int, ...]] = []
    resumed, whole = run(lambda *at: again.append(at), tmp_path), run(lambda *at: None)
    n_passes = sum(done == 1 for done, _ in again)
    assert n_passes == 1  # the second one went on, and the third one reads
    np.testing.assert_array_equal(resumed.scores, whole.scores)
    np.testing.assert_array_equal(resumed.shuffled, whole.shuffled)


def test_terms_are_public():
    term = Term(Concept("text", (("word", "red"),)), 3.0)
    assert Explanation("red", (term,)).terms[0].level == 3.0

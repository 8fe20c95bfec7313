"""Masking curves and the specificity matrix, with neurons that tasks are known to need."""

from __future__ import annotations

import pytest

from tests.analyses.planted_tasks import PlantedTasks, planted_tasks
from vlm_lens import NeuronSet, Sample
from vlm_lens.analyses import miner
from vlm_lens.analyses.miner_curve import ALL, MaskingCurve, masking_curve
from vlm_lens.analyses.miner_scores import ModalityScores
from vlm_lens.edits import Set
from vlm_lens.experiments import CLEAN, Matrix, matrix, measure
from vlm_lens.neurons.controls import random_neurons


@pytest.fixture(scope="module")
def plants() -> PlantedTasks:
    return planted_tasks()


@pytest.fixture(scope="module")
def scores(plants: PlantedTasks) -> ModalityScores:
    return miner.score(plants.model, plants.tasks)


@pytest.fixture(scope="module")
def measured(plants: PlantedTasks, scores: ModalityScores) -> Matrix:
    sets = {
        name: NeuronSet([neuron], sizes=scores.sizes)
        for name, neuron in (("image", plants.image), ("text", plants.text))
    }
    return matrix(plants.model, sets, plants.tasks, max_new_tokens=1)


# The matrix ---------------------------------------------------------------------------------------


def test_neurons_of_one_task_are_specific_to_it(measured: Matrix):
    assert measured.wide("drop").to_numpy().tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert measured.wide("control").to_numpy().tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert measured.wide().equals(measured.wide("drop"))  # excess
    assert measured.wide("clean").to_numpy().tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert list(measured.wide().index) == ["image", "text"]
    both = measured.own_and_cross()
    assert both.to_numpy().tolist() == [["image", 1.0, 0.0, 1.0, 0.0], ["text", 1.0, 0.0, 1.0, 0.0]]


def test_selected_neurons_are_found_to_be_specific(plants: PlantedTasks, scores: ModalityScores):
    selected = miner.select(scores, ratio=0.15)
    assert plants.image in selected["image"]
    assert plants.text in selected["text"]
    found = matrix(plants.model, selected, plants.tasks, max_new_tokens=1, seeds=range(4))
    drops = found.wide("drop")
    assert (drops.loc["image", "image"], drops.loc["image", "text"]) == (1.0, 0.0)
    assert (drops.loc["text", "text"], drops.loc["text", "image"]) == (1.0, 0.0)


def test_controls_are_random_neurons_of_the_same_layers(plants: PlantedTasks):
    every = NeuronSet.from_indices(
        {"blocks.0.mlp.hook_act": range(0, 64, 2)}, sizes={"blocks.0.mlp.hook_act": 64}
    )  # even ones: the planted ones are odd
    found = matrix(plants.model, {"even": every}, plants.tasks, seeds=(3, 4), max_new_tokens=1)
    row = found.frame.iloc[0]
    assert (row.control, row.control_low, row.control_high) == (1.0, 1.0, 1.0)
    assert row.excess == -1.0
    maskings = {str(s): Set(random_neurons(every, seed=s)) for s in (3, 4)}
    grades = measure(plants.model, plants.tasks, maskings, max_new_tokens=1)
    assert [grades.drop(name, "image")[0] for name in maskings] == [1.0, 1.0]


def test_a_matrix_needs_sets_and_seeds(plants: PlantedTasks):
    with pytest.raises(ValueError, match="got 0 and 3"):
        matrix(plants.model, {}, plants.tasks)
    with pytest.raises(ValueError, match="got 1 and 0"):
        matrix(plants.model, {"a": NeuronSet([plants.image])}, plants.tasks, seeds=())
    with pytest.raises(ValueError, match="is not known"):
        NeuronSet([plants.image]).sample_control()


def test_a_matrix_is_saved_and_loaded(measured: Matrix, tmp_path):
    measured.save(tmp_path)
    loaded = Matrix.load(tmp_path)
    assert loaded.frame.equals(measured.frame)
    assert loaded.parameters == measured.parameters
    assert loaded.parameters["seeds"] == [0, 1, 2]
    assert str(loaded) == str(measured)
    assert "<table" in measured._repr_html_()
    with pytest.raises(FileNotFoundError):
        MaskingCurve.load(tmp_path)
    (tmp_path / "matrix.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        Matrix.load(tmp_path)


# Curves -------------------------------------------------------------------------------------------


def test_performance_falls_where_the_needed_neuron_is_masked(
    plants: PlantedTasks, scores: ModalityScores
):
    curve = masking_curve(
        plants.model, scores, plants.tasks, ratios=(0.001, 0.15), seeds=(0,), max_new_tokens=1
    )
    table = curve.table().set_index("task")
    assert table["ratio"].tolist() == [0.15, 0.15]
    assert table["clean"].tolist() == [1.0, 1.0]
    assert table["image"].tolist() == [0.0, 1.0]
    assert table["text"].tolist() == [1.0, 0.0]
    assert table[ALL].tolist() == [0.0, 0.0]
    assert table["image (random)"].tolist() == [1.0, 1.0]
    assert curve.notes[0].startswith("nothing is masked: a ratio of 0.001")
    row = curve.frame[(curve.frame.masked == "image") & ~curve.frame.control].iloc[0]
    assert row.n_neurons == int(0.15 * 3 * 64) // 3
    assert curve.frame[curve.frame.masked == CLEAN]["ratio"].tolist() == [0.0, 0.0]


def test_the_complement_keeps_only_what_is_selected(plants: PlantedTasks, scores: ModalityScores):
    curve = masking_curve(
        plants.model,
        scores,
        plants.tasks,
        ratios=(0.06,),
        modalities=["image"],
        complement=True,
        seeds=(),
        max_new_tokens=1,
    )
    table = curve.table().set_index("task")["image"]
    assert table["image"] == 1.0  # its neuron is still there
    assert table["text"] == 0.0
    assert curve.parameters["complement"] is True
    assert "all but" in curve.plot().layout.title.text


def test_curves_are_saved_and_loaded(plants: PlantedTasks, scores: ModalityScores, tmp_path):
    curve = masking_curve(
        plants.model, scores, {"text": plants.tasks["text"][:2]}, ratios=(0.1,), value="min",
        modalities=[ALL], max_new_tokens=1,
    )  # fmt: skip
    curve.save(tmp_path)
    loaded = MaskingCurve.load(tmp_path)
    assert loaded.frame.equals(curve.frame)
    assert loaded.notes == curve.notes
    assert loaded.parameters["value"] == "min"
    assert loaded.table().equals(curve.table())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "random"}, "random neurons are the control"),
        ({"modalities": ["smell"]}, "got 'smell'"),
        ({"ratios": (2.0,)}, "above 0 and at most 1"),
        ({"value": "max"}, "finite number"),
        ({"weights": (1,)}, "a weight >= 0"),
    ],
)
def test_wrong_arguments_are_refused(plants, scores, unchecked, change, message: str):
    with pytest.raises(ValueError, match=message):
        masking_curve(plants.model, scores, plants.tasks, **{"ratios": (0.1,), **change})


def test_a_task_without_answers_is_refused(plants: PlantedTasks, scores: ModalityScores):
    with pytest.raises(ValueError, match="samples with answers in task 'a'"):
        masking_curve(plants.model, scores, {"a": [Sample(images=[], text="what ?")]})

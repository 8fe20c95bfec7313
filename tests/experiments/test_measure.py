"""Tasks with neurons masked: which activations change, and how answers are graded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.analyses.planted_tasks import PlantedTasks, planted_tasks
from tests.conftest import assert_no_hooks
from tests.families import build
from tests.tiny import Tiny, picture
from vlm_lens import HookedVLM, NeuronSet, Sample
from vlm_lens.edits import Add, Scale, Set
from vlm_lens.experiments import CLEAN, Answered, exact_match, measure
from vlm_lens.neurons.controls import random_neurons

NAME = "blocks.1.mlp.hook_act"
SIZES = {f"blocks.{layer}.mlp.hook_act": 64 for layer in range(3)}


@pytest.fixture(scope="module")
def plants() -> PlantedTasks:
    return planted_tasks()


def some(*indices: int, name: str = NAME) -> NeuronSet:
    return NeuronSet.from_indices({name: indices}, sizes=SIZES)


def prompts(model: HookedVLM):
    return model.prepare(
        images=[picture(0), None, picture(1)], text=["what color ?", "is a circle red ?", "left ?"]
    )


def seen(model: HookedVLM, inputs, hooks, name: str = NAME) -> torch.Tensor:
    """The activations at a hook point behind its own hooks."""
    kept = []
    with torch.no_grad(), model.hooks([*hooks, (name, lambda t, hook: kept.append(t.clone()))]):
        model(inputs, return_type=None)
    return kept[0]


# Masking ------------------------------------------------------------------------------------------


def test_zero_and_numbers_replace_the_chosen_neurons(llava: Tiny):
    inputs = prompts(llava.model)
    clean = seen(llava.model, inputs, [])
    for value, expected in (("zero", 0.0), (2.5, 2.5)):
        masked = seen(llava.model, inputs, Set(some(3, 7), value).hooks(inputs))
        assert (masked[..., [3, 7]] == expected).all()
        others = [i for i in range(64) if i not in (3, 7)]
        assert torch.equal(masked[..., others], clean[..., others])


def test_min_is_the_smallest_of_the_layer_whatever_else_is_in_the_batch(llava: Tiny):
    inputs = prompts(llava.model)
    clean = seen(llava.model, inputs, [])
    padding = inputs.attention_mask == 0
    assert padding.any()
    lower = (NAME, lambda t, hook: t.masked_fill(padding[..., None], -100.0))
    masked = seen(llava.model, inputs, [lower, *Set(some(3), "min").hooks(inputs)])
    for row, empty, values in zip(clean, padding, masked, strict=True):
        assert (values[:, 3] == row[~empty].min()).all()


def test_a_complement_masks_all_others_at_all_sites(llava: Tiny):
    inputs = prompts(llava.model)
    clean = seen(llava.model, inputs, [])
    masking = Set(some(3), others=True, sites=tuple(SIZES))
    assert masking.names == tuple(SIZES)
    hooks = [hook for hook in masking.hooks(inputs) if hook[0] == NAME]
    masked = seen(llava.model, inputs, hooks)
    assert torch.equal(masked[..., 3], clean[..., 3])
    assert not masked[..., [i for i in range(64) if i != 3]].any()
    hooks = [hook for hook in masking.hooks(inputs) if hook[0] != NAME]
    assert not seen(llava.model, inputs, hooks, "blocks.0.mlp.hook_act").any()


def test_impossible_maskings_are_refused(llava: Tiny, unchecked):
    inputs = prompts(llava.model)
    hooks = Set(NeuronSet.from_indices({NAME: [64]})).hooks(inputs)
    with pytest.raises(IndexError, match=r"hook_act\[64\] does not exist"):
        seen(llava.model, inputs, hooks)
    with pytest.raises(ValueError, match="needs sites"):
        Set(NeuronSet(), others=True)
    for value in ("max", float("nan")):
        with pytest.raises(ValueError, match="must be a finite number"):
            Set(some(1), value)


def test_controls_are_as_many_neurons_of_the_same_layers():
    neurons = NeuronSet.from_indices({NAME: range(20), "blocks.0.mlp.hook_act": [1]}, sizes=SIZES)
    control = random_neurons(neurons, seed=1)
    assert control.count_by("name") == neurons.count_by("name")
    assert not control & neurons
    assert control == random_neurons(neurons, seed=1) != random_neurons(neurons, seed=2)
    many = NeuronSet.from_indices({NAME: range(40)}, sizes=SIZES)
    assert random_neurons(many, seed=0).count_by("name") == {NAME: 40}
    with pytest.raises(KeyError, match="hook points"):
        random_neurons(neurons, seed=1, sizes={NAME: 64})


def test_a_factor_scales_and_a_direction_is_added(llava: Tiny):
    inputs = llava.inputs("batch")
    clean = seen(llava.model, inputs, [])
    scaled = seen(llava.model, inputs, Scale(some(3, 7), 3.0).hooks(inputs))
    expected = clean.clone()
    expected[..., [3, 7]] *= 3
    torch.testing.assert_close(scaled, expected)
    steered = seen(llava.model, inputs, Add({NAME: torch.ones(64)}, -0.5).hooks(inputs))
    torch.testing.assert_close(steered, clean - 0.5)
    assert (Scale(some(1), 2).names, Add({NAME: torch.ones(64)}).names) == ((NAME,), (NAME,))
    with pytest.raises(ValueError, match="finite number"):
        Scale(some(1), float("nan"))


# Measuring ----------------------------------------------------------------------------------------


def test_answers_count_by_their_words():
    sample = Sample(images=[], text="", answer="A red  circle")
    assert exact_match("a RED circle ", sample) == 1.0
    assert exact_match("a red", sample) == 0.0


def test_grades_are_of_the_answers_that_a_masked_model_gives(llava: Tiny):
    """Against `generate` under hooks, one sample at a time, without anything computed only once."""
    model = llava.model
    tasks = {
        "image": [Sample(images=[picture(i)], text="what color ?", answer="x") for i in range(3)],
        "text": [Sample(images=[], text="is the circle red ?", answer="x")],
    }
    maskings = {
        "late": Set(some(*range(64), name="blocks.2.mlp.hook_act")),
        "early": Set(some(*range(64), name="blocks.0.mlp.hook_act"), "min"),
    }
    answers: list[str] = []

    def grade(answer: str, sample: Sample) -> float:
        answers.append(answer)
        return sum(map(ord, answer)) / 10_000

    found = measure(model, tasks, maskings, grade=grade, batch_size=2, max_new_tokens=4)
    assert_no_hooks(model)
    assert list(found.of) == [CLEAN, "late", "early"]
    for name, masking in {CLEAN: None, **maskings}.items():
        for task, samples in tasks.items():
            expected = []
            for sample in samples:
                inputs = model.prepare(text=sample.text, images=sample.images or None)
                with model.hooks([] if masking is None else masking.hooks(inputs)):
                    answer = model.generate(
                        inputs, max_new_tokens=4, do_sample=False, suppress_tokens=[4]
                    )
                assert answer in answers
                expected.append(grade(answer, sample))
            torch.testing.assert_close(found.of[name][task], torch.tensor(expected).double())
    assert found.of["late"]["image"].tolist() != found.of[CLEAN]["image"].tolist()


def test_drops_have_a_standard_error(plants: PlantedTasks):
    half = [*plants.tasks["image"][:3], *plants.tasks["text"][:3]]
    maskings = {"image": Set(NeuronSet([plants.image]))}
    grades = measure(plants.model, {"both": half}, maskings, max_new_tokens=1)
    drop, error = grades.drop("image", "both")
    assert drop == 0.5
    assert error == pytest.approx(np.std([1, 1, 1, 0, 0, 0], ddof=1) / 6**0.5)


def test_samples_without_an_answer_do_not_count(plants: PlantedTasks):
    good = plants.tasks["text"][0]
    samples = [good, Sample(images=[], text="what ?"), Sample(images=[], text="a ?", answer=" ")]
    found = measure(plants.model, {"words": samples}, {}, max_new_tokens=1)
    assert found.notes == ("2 samples of 'words' left out: they have no answer",)
    assert found.of[CLEAN]["words"].tolist() == [1.0]
    with pytest.raises(ValueError, match="got 2 without"):
        measure(plants.model, {"words": samples[1:]}, {})


def test_questions_about_sounds_are_prepared_inputs_with_answers():
    hf, processor = build("qwen2_audio")
    model = HookedVLM(hf, processor=processor)
    rate = processor.feature_extractor.sampling_rate
    noise = np.random.default_rng(0).standard_normal(rate).astype(np.float32)
    inputs = model.prepare(audio=[noise[: rate // 2], noise], text=["what color ?", "circle"])
    [first, _] = model.generate(inputs, max_new_tokens=2, do_sample=False)
    task = [Answered(inputs, [first, "nothing like it"])]
    found = measure(model, {"sounds": task}, {}, max_new_tokens=2)
    assert found.of[CLEAN]["sounds"].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="one answer for each of 2 prompts, got 1"):
        Answered(inputs, ["red"])


def test_what_cannot_be_measured_is_refused(plants: PlantedTasks):
    model, tasks = plants.model, plants.tasks
    with pytest.raises(ValueError, match="at least one task"):
        measure(model, {}, {})
    with pytest.raises(ValueError, match="rename the set"):
        measure(model, tasks, {CLEAN: Set(some(1))})
    with pytest.raises(ValueError, match="max_new_tokens of at least 1"):
        measure(model, tasks, {}, max_new_tokens=0)
    with pytest.raises(ValueError, match="batch_size of at least 1"):
        measure(model, tasks, {}, batch_size=0)
    empty = Sample(images=[], text="", answer="red")
    with pytest.raises(ValueError, match="none of the 1 samples of task 'words' can be used: Val"):
        measure(model, {"words": [empty]}, {})
    assert_no_hooks(model)


def test_progress_is_told(plants: PlantedTasks):
    seen: list[tuple[int, int]] = []
    measure(
        plants.model, plants.tasks, {}, batch_size=4, max_new_tokens=1,
        on_batch=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

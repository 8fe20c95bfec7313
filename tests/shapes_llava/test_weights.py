"""The bundled weights: they load like any Hugging Face model and answer as the card says."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from vlm_lens.data import load_samples
from vlm_lens.shapes_llava import IMAGES, WEIGHTS
from vlm_lens.shapes_llava.evaluate import answer, evaluate, table
from vlm_lens.shapes_llava.questions import TASKS
from vlm_lens.shapes_llava.release import RECTANGLE, card, sample_images
from vlm_lens.shapes_llava.world import CATEGORIES

READING = {"color", "shape", "digit", "place", "description"}


@pytest.fixture(scope="module")
def bundled() -> tuple:
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS).eval()
    return model, AutoProcessor.from_pretrained(WEIGHTS)


def test_weights_are_a_plain_small_float32_llava(bundled: tuple) -> None:
    model, processor = bundled
    assert type(model) is LlavaForConditionalGeneration
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 10e6
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def stored() -> dict:
    return json.loads((WEIGHTS / "accuracy.json").read_text())


@pytest.mark.full
@pytest.mark.parametrize("task", TASKS)
def test_held_out_questions_are_answered_as_the_card_says(bundled: tuple, task: str) -> None:
    """Other samples than the card's; the difference allowed is that of a small sample."""
    samples = load_samples("shapes-llava", task=task, n=16 * len(CATEGORIES[task]), seed=7)
    given = answer(*bundled, samples)
    hits = [sample.answer == text for sample, text in zip(samples, given, strict=True)]
    promised = [row["accuracy"] for row in stored()[task].values()]
    assert sum(hits) / len(hits) >= sum(promised) / len(promised) - 0.08


def test_stored_accuracies_reach_their_goals() -> None:
    assert {task: set(rows) for task, rows in stored().items()} == {
        task: set(categories) for task, categories in CATEGORIES.items()
    }
    for rows in stored().values():
        for category, row in rows.items():
            assert row["total"] >= 500
            assert row["accuracy"] >= (0.97 if category in READING else 0.90)


def test_evaluation_counts_every_task_and_type(bundled: tuple) -> None:
    result = evaluate(*bundled, n=2, seed=3)
    assert {task: set(rows) for task, rows in result.items()} == {
        task: set(categories) for task, categories in CATEGORIES.items()
    }
    for rows in result.values():
        for row in rows.values():
            assert row["total"] == 2
            assert row["accuracy"] == row["correct"] / 2
    assert table(result).count("\n| ") == 1 + sum(map(len, CATEGORIES.values()))


def test_card_is_that_of_the_stored_accuracies() -> None:
    assert (WEIGHTS / "README.md").read_text() == card(WEIGHTS)


def test_sample_images_are_answered(bundled: tuple) -> None:
    samples = load_samples(IMAGES)
    assert [sample.answer for sample in samples] == list(answer(*bundled, samples))


@pytest.mark.full
def test_sample_images_are_those_of_the_world() -> None:
    found_samples = load_samples(IMAGES)
    made = list(sample_images())
    assert len(found_samples) == len(made)
    for found, (name, sample) in zip(found_samples, made, strict=True):
        with Image.open(IMAGES / name) as image:
            assert image.tobytes() == sample.images[0].tobytes() == found.images[0].tobytes()
        assert (found.text, found.answer) == (sample.text, sample.answer)
    assert found_samples[-1].images[0].size == RECTANGLE

"""Naming: the labels are those of the scene, for image tokens and for words."""

from random import Random

import pytest
import torch

from vlm_lens.shapes_llava.build import IMAGE_TOKENS
from vlm_lens.shapes_llava.draw import locate_objects
from vlm_lens.shapes_llava.naming import (
    LABELS,
    NOTHING,
    Namer,
    find_asked,
    find_told,
    label_object,
    label_patches,
)
from vlm_lens.shapes_llava.questions import QUESTIONS, ask, tell
from vlm_lens.shapes_llava.scenes import SceneObject, sample_scene
from vlm_lens.shapes_llava.words import PLACES


def said(label: torch.Tensor) -> list[str]:
    return [words[index] for words, index in zip(LABELS.values(), label.tolist(), strict=True)]


def words_of(thing: SceneObject) -> list[str]:
    return [thing.color, thing.name, PLACES[thing.place]]


def test_patch_labels_name_what_the_masks_show() -> None:
    scenes = [sample_scene(Random(seed)) for seed in range(6)]
    labels = label_patches(scenes)
    assert labels.shape == (6, IMAGE_TOKENS, 3)
    for row, scene in enumerate(scenes):
        shown = torch.zeros(IMAGE_TOKENS, dtype=torch.bool)
        for thing, drawing in zip(scene.objects, locate_objects(scene), strict=True):
            fullest = int(drawing.patch_fraction.argmax())
            assert said(labels[row, fullest]) == words_of(thing)
            shown |= torch.from_numpy(drawing.patch_fraction.ravel() > 0.1)
        assert torch.equal((labels[row] < torch.tensor(NOTHING)).all(-1), shown)
        assert torch.equal((labels[row] == torch.tensor(NOTHING)).all(-1), ~shown)


@pytest.mark.parametrize("seed", range(10))
def test_each_full_stop_is_about_the_phrase_before_it(seed: int) -> None:
    scene = sample_scene(Random(seed), n_objects=4)
    words = ["<bos>", *tell(Random(seed), scene).split()]
    mentions = find_told(words, scene)
    assert {thing for _, thing in mentions} == set(scene.objects)
    for end, thing in mentions:
        phrase = thing.phrase.split()
        assert words[end - len(phrase) : end + 1] == [*phrase, "."]


def test_an_image_prefix_mentions_nothing() -> None:
    assert find_told(["<bos>", "<image>"], sample_scene(Random(0))) == []


@pytest.mark.parametrize("category", list(QUESTIONS))
def test_asked_words_are_about_the_object_of_the_question(category: str) -> None:
    rng, seen = Random(0), 0
    for _ in range(50):
        scene = sample_scene(rng)
        question = ask(rng, category, scene)
        if question is None:
            continue
        words = f"{question.text} answer :".split()
        mentions = find_asked(words, question, scene)
        seen += bool(mentions)
        if category == "relation":
            (first, thing), *mentions = mentions
            assert thing == scene.objects[question.about[0]]
            assert words[first - 1 : first + 1] == [thing.color, thing.name]
        for index, thing in mentions:
            assert index >= words.index("?") - 1
            assert thing == scene.objects[question.about[-1]]
    assert (seen == 0) == (category == "count")


def test_loss_is_that_of_the_labels_and_weighs_empty_patches_less() -> None:
    torch.manual_seed(0)
    namer = Namer(8)
    states = torch.randn(2, 5, 8)
    labels = torch.tensor(NOTHING).repeat(2, 5, 1)
    labels[0, 1] = torch.tensor(label_object(sample_scene(Random(0)).objects[0]))
    expected, weights = 0.0, 0.0
    for row in range(2):
        for position in range(5):
            state = states[row, position] / states[row, position].pow(2).mean().sqrt()
            weight = 1.0 if (row, position) == (0, 1) else 0.1
            weights += weight
            for head, label in zip(namer.heads, labels[row, position], strict=True):
                expected -= weight * head(state).log_softmax(0)[label].item()
    assert namer.loss(states, labels).item() == pytest.approx(expected / weights, rel=1e-4)

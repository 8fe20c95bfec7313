"""Training: deterministic in one process and in several, and it learns."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import multiprocessing
from transformers import LlavaForConditionalGeneration

from vlm_lens.shapes_llava.build import Size, build_model
from vlm_lens.shapes_llava.patches import whiten_patches
from vlm_lens.shapes_llava.scenes import sample_scene
from vlm_lens.shapes_llava.train import (
    NAMING_LAYER,
    VOCAB,
    Learner,
    Phase,
    Recipe,
    encode,
    image_lesson,
    learning_rate,
    lesson_losses,
    save,
    told_lesson,
    train,
    train_step,
    work,
)
from vlm_lens.shapes_llava.words import NAMES, PLACES

TINY = Size(vision_width=32, vision_layers=1, text_width=32, text_layers=1, text_mlp=48, heads=2)
PHASE = Phase(steps=3, asking=True, images=4, tales=4)
NAMING = replace(PHASE, asking=False)
RECIPE = Recipe(processes=1, phases=(NAMING, PHASE), warmup=2, size=TINY)
UNUSED = "model.vision_tower.post_layernorm."
"""LLaVA takes the patches before it; only the class token, which it drops, would go through."""


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return train(recipe).state_dict()


def test_same_seed_gives_the_same_weights_bit_for_bit() -> None:
    first, second = weights(RECIPE), weights(RECIPE)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights() -> None:
    first, second = weights(RECIPE), weights(replace(RECIPE, seed=1))
    assert not any(torch.equal(first[n], second[n]) for n in first if first[n].ndim == 2)


def _work_twice(rank: int, recipe: Recipe, folder: Path) -> None:
    for name in ("first", "second"):
        work(rank, recipe, str(folder / f"meeting_{name}"), folder / name)


@pytest.mark.full
def test_two_processes_are_repeatable_too(tmp_path: Path) -> None:
    multiprocessing.spawn(_work_twice, (replace(RECIPE, processes=2), tmp_path), nprocs=2)
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("first", "second"))
    assert first == second


def test_every_weight_is_trained() -> None:
    torch.manual_seed(RECIPE.seed)
    start, end = build_model(TINY).state_dict(), weights(RECIPE)
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert all(name.startswith(UNUSED) or name.endswith("position_ids") for name in same)


@pytest.mark.full
@pytest.mark.parametrize("start", [NAMING, PHASE])
def test_the_losses_fall(start: Phase) -> None:
    torch.manual_seed(0)
    model, rng = build_model(TINY), Random(0)
    phase = replace(start, steps=60, images=8, tales=8)
    whiten_patches(model.model.vision_tower, Random(0))
    learner = Learner(model, RECIPE)
    losses = [train_step(learner, rng, step=step, phase=phase, recipe=RECIPE) for step in range(60)]
    told = {"patches", "told words", "told answers"}
    asked = {"image words", "image answers"} if start.asking else set()
    assert set(losses[0]) == set(losses[-1]) == told | asked
    for name, first in losses[0].items():
        assert losses[-1][name] < (0.92 if "words" in name else 0.8) * first


@pytest.mark.parametrize("make_lesson", [image_lesson, told_lesson])
def test_mentions_point_at_the_words_of_the_packed_sequence(make_lesson: Callable) -> None:
    """Each mention is the full stop of a phrase, or lies in the prompt of a question."""
    rng = Random(3)
    words = list(VOCAB)
    for _ in range(20):
        scene = sample_scene(rng)
        lesson = make_lesson(rng, scene)
        prefix, pairs = lesson.item
        sequence = [*prefix, *(token for pair in pairs for part in pair for token in part)]
        found = [words[sequence[position]] for position, _ in lesson.mentions]
        stops = len(scene.objects) if make_lesson is told_lesson else 0
        assert found[:stops] == ["."] * stops
        assert set(found[stops:]) <= {
            "?",
            "answer",
            ":",
            "object",
            *NAMES,
            *" ".join(PLACES).split(),
        }
        assert found[stops:].count("answer") == found[stops:].count("?")


def test_words_are_named_after_the_naming_layer() -> None:
    """The layers above it get no gradient from naming; those below do."""
    torch.manual_seed(0)
    size = replace(TINY, text_layers=NAMING_LAYER + 1)
    learner = Learner(build_model(size), replace(RECIPE, size=size))
    lesson = told_lesson(Random(0), sample_scene(Random(0)))
    words, _ = lesson_losses(learner, [lesson])
    words.backward()
    layers = learner.model.model.language_model.layers
    assert layers[NAMING_LAYER - 1].mlp.down_proj.weight.grad.abs().sum() > 0
    assert layers[NAMING_LAYER].mlp.down_proj.weight.grad is None


def test_learning_rate_rises_and_falls_to_zero() -> None:
    phase = replace(PHASE, steps=100)
    recipe = Recipe(warmup=10, peak_lr=1.0)
    rates = [learning_rate(step, phase=phase, recipe=recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(0.91)
    assert rates[50] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.01)


def test_optimizers_share_out_all_weights() -> None:
    learner = Learner(build_model(TINY), RECIPE)
    given = [w for o in learner.optimizers for group in o.param_groups for w in group["params"]]
    parts = (learner.model, learner.patch_namer, learner.word_namer)
    expected = {weight for part in parts for weight in part.parameters()}
    assert set(given) == set(learner.weights) == expected
    assert len(given) == len(expected)


def test_whitened_patches_are_spread_evenly() -> None:
    """The embedded components of patches have like variance, but for those that are noise."""
    model = build_model()
    whiten_patches(model.model.vision_tower, Random(0))
    filters = model.model.vision_tower.embeddings.patch_embedding.weight.flatten(1)
    angles = torch.nn.functional.normalize(filters, dim=1)
    torch.testing.assert_close(angles @ angles.T, torch.eye(128), atol=1e-4, rtol=0)
    assert filters[0].norm() < 0.1 * filters[60].norm(), "brightness no longer outweighs detail"


def test_unknown_words_are_not_passed_over() -> None:
    with pytest.raises(KeyError, match="elephant"):
        encode(["where", "is", "the", "elephant"])


def test_saved_folder_holds_model_and_processor(tmp_path: Path) -> None:
    model = build_model(TINY)
    save(model, tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert {"tokenizer_config.json", "processor_config.json", "chat_template.jinja"} <= names

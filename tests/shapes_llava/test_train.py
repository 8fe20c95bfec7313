"""Training: deterministic in one process and in several, and it learns."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from torch import multiprocessing
from transformers import LlavaForConditionalGeneration

from vlm_lens.shapes_llava.build import IMAGE_TOKENS, Size, build_model
from vlm_lens.shapes_llava.draw import locate_objects
from vlm_lens.shapes_llava.patches import LABELS, PatchNamer, label_patches, whiten_patches
from vlm_lens.shapes_llava.scenes import sample_scene
from vlm_lens.shapes_llava.train import (
    Learner,
    Phase,
    Recipe,
    encode,
    learning_rate,
    save,
    train,
    train_step,
    work,
)
from vlm_lens.shapes_llava.words import PLACES

TINY = Size(vision_width=32, vision_layers=1, text_width=32, text_layers=1, text_mlp=48, heads=2)
PHASE = Phase(steps=3, image_scenes=4, text_scenes=4, decay=2, grow=1)
NAMING = replace(PHASE, naming=tuple(LABELS), asking=False)
RECIPE = Recipe(processes=1, phases=(NAMING, PHASE), warmup=2, size=TINY)


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return train(recipe).state_dict()


def test_same_seed_gives_the_same_weights_bit_for_bit() -> None:
    first, second = weights(RECIPE), weights(RECIPE)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights() -> None:
    first, second = weights(RECIPE), weights(replace(RECIPE, seed=1))
    assert not any(torch.equal(first[n], second[n]) for n in first if first[n].ndim == 2)


def test_two_processes_are_repeatable_too(tmp_path: Path) -> None:
    recipe = replace(RECIPE, processes=2)
    for name in ("first", "second"):
        arguments = (recipe, str(tmp_path / f"meeting_{name}"), tmp_path / name)
        multiprocessing.spawn(work, arguments, nprocs=2)
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("first", "second"))
    assert first == second


def test_every_weight_is_trained() -> None:
    torch.manual_seed(RECIPE.seed)
    start, end = build_model(TINY).state_dict(), weights(RECIPE)
    same = {name for name in start if torch.equal(start[name], end[name])}
    assert same <= {"model.vision_tower.embeddings.position_ids"}


@pytest.mark.parametrize("start", [NAMING, PHASE])
def test_the_losses_fall(start: Phase) -> None:
    torch.manual_seed(0)
    model, rng = build_model(TINY), Random(0)
    phase = replace(start, steps=40, image_scenes=8, text_scenes=8, grow=100)
    whiten_patches(model.model.vision_tower, Random(0))
    learner = Learner(model, PatchNamer(32, start.naming) if start.naming else None, RECIPE)
    losses = [train_step(learner, rng, step=step, phase=phase, recipe=RECIPE) for step in range(40)]
    for first, last in zip(losses[0], losses[-1], strict=True):
        assert last < 0.75 * first


def test_learning_rate_rises_stays_and_falls() -> None:
    phase = Phase(steps=100, image_scenes=1, text_scenes=1, decay=20)
    recipe = Recipe(warmup=10, peak_lr=1.0)
    rates = [learning_rate(step, phase=phase, recipe=recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)


def test_optimizers_share_out_all_weights() -> None:
    model, namer = build_model(TINY), PatchNamer(32, ("color", "name"))
    learner = Learner(model, namer, RECIPE)
    given = [w for o in learner.optimizers for group in o.param_groups for w in group["params"]]
    expected = {*model.parameters(), *namer.parameters()}
    assert set(given) == set(learner.weights) == expected
    assert len(given) == len(expected)


@pytest.mark.parametrize("key", list(LABELS))
def test_patch_labels_name_what_the_masks_show(key: str) -> None:
    scenes = [sample_scene(Random(seed)) for seed in range(6)]
    labels = label_patches(scenes, key)
    assert labels.shape == (6, IMAGE_TOKENS)
    for row, scene in enumerate(scenes):
        shown = torch.zeros(IMAGE_TOKENS, dtype=torch.bool)
        for thing, drawing in zip(scene.objects, locate_objects(scene), strict=True):
            fullest = int(drawing.patch_fraction.argmax())
            word = PLACES[thing.place] if key == "place" else getattr(thing, key)
            assert LABELS[key][labels[row, fullest]] == word
            shown |= torch.from_numpy(drawing.patch_fraction.ravel() > 0.1)
        assert torch.equal(labels[row] < len(LABELS[key]), shown)


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
        encode("where is the elephant ?")


def test_saved_folder_holds_model_and_processor(tmp_path: Path) -> None:
    model = build_model(TINY)
    save(model, tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    assert {"tokenizer_config.json", "processor_config.json", "chat_template.jinja"} <= names

"""The `shapes` world as samples: held-out or training scenes with questions and annotations."""

from __future__ import annotations

from random import Random
from typing import Any

from PIL import Image

from vlm_lens.data.sample import Sample
from vlm_lens.shapes_llava.digits import SPLITS
from vlm_lens.shapes_llava.draw import Drawing, draw_images, locate_objects
from vlm_lens.shapes_llava.questions import QUESTIONS, TASKS, Question, ask, describe, tell
from vlm_lens.shapes_llava.scenes import Scene, SceneObject, sample_scene
from vlm_lens.shapes_llava.words import PLACES

CATEGORIES = {
    "image": tuple(QUESTIONS),
    "caption": ("description",),
    "text": (*QUESTIONS, "description"),
}
"""The question types of every task; samples go through them in turn."""


def make_samples(
    *, split: str = "test", task: str = "image", n: int = 200, seed: int = 0
) -> list[Sample]:
    """Draws samples of the `shapes` world; the same arguments always give the same samples.

    Args:
        split: "train", "val" or "test"; no scene content and no digit image is in two of them.
        task: "image" (a question about an image), "caption" (describe an image) or "text" (a
            question about a scene that is told in words, without an image).
        n: how many samples.
        seed: which samples.

    Returns:
        Samples whose `annotations` hold "objects" (one dictionary per object, in raster order, see
        `describe_object`), "about" (the indices of the objects that the question is about) and
        "scene" (the description of the whole scene).

    Raises:
        ValueError: when `split` or `task` is unknown or `n` is less than 1.

    Example:
        >>> sample = make_samples(split="test", task="image", n=1)[0]
        >>> sample.images[0].size, sample.category
        ((64, 64), 'color')
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if task not in TASKS:
        raise ValueError(f"task must be one of {TASKS}, got {task!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    rng = Random(f"{split} {task} {seed}")
    categories = CATEGORIES[task]
    return [_make_sample(rng, split, task, categories[i % len(categories)]) for i in range(n)]


def _make_sample(rng: Random, split: str, task: str, category: str) -> Sample:
    modality = "text" if task == "text" else "image"
    question = None
    while question is None:
        scene = sample_scene(rng, split=split)
        if category == "description":
            question = describe(scene, modality=modality)
        else:
            question = ask(rng, category, scene)
    if modality == "image":
        return _to_sample(scene, question, [Image.fromarray(draw_images([scene])[0])], "")
    return _to_sample(scene, question, [], f"{tell(rng, scene)} question : ")


def _to_sample(scene: Scene, question: Question, images: list[Image.Image], told: str) -> Sample:
    drawings = locate_objects(scene)
    return Sample(
        images=images,
        text=told + question.text,
        answer=question.answer,
        category=question.category,
        annotations={
            "objects": [
                describe_object(*pair) for pair in zip(scene.objects, drawings, strict=True)
            ],
            "about": list(question.about),
            "scene": scene.description,
        },
    )


def describe_object(thing: SceneObject, drawing: Drawing) -> dict[str, Any]:
    """Everything that is known about one object.

    Returns:
        A dictionary with "kind" ("shape" or "digit"), "color", "name" (the word that names it),
        "shape" and "digit" (one of the two is None), "place", "box" (x0, y0, x1, y1 in pixels,
        exclusive ends), "mask" (64x64, boolean), "patch_fraction" (8x8, the share of every patch
        that the object covers) and "patch_mask" (8x8, boolean: the patch holds any of it).

    Example:
        >>> sample = make_samples(task="image", n=1)[0]
        >>> sorted(sample.annotations["objects"][0])[:4]
        ['box', 'color', 'digit', 'kind']
    """
    return {
        "kind": thing.kind,
        "color": thing.color,
        "name": thing.name,
        "shape": thing.name if thing.kind == "shape" else None,
        "digit": thing.name if thing.kind == "digit" else None,
        "place": PLACES[thing.place],
        "box": drawing.box,
        "mask": drawing.mask,
        "patch_fraction": drawing.patch_fraction,
        "patch_mask": drawing.patch_fraction > 0,
    }

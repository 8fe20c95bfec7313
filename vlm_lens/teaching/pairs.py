"""Pairs of pictures that differ in one property of one object, for patching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from vlm_lens.shapes_llava.draw import draw_images
from vlm_lens.shapes_llava.scenes import Scene, SceneObject, sample_scene
from vlm_lens.shapes_llava.words import PLACES

_RGB = {"red": (215, 35, 35), "blue": (40, 80, 225)}


@dataclass(frozen=True)
class Pairs:
    """Pictures in two versions, and what is asked about both.

    Attributes:
        clean: One version of each picture.
        corrupted: The other, with another answer.
        questions: One for each pair.
    """

    clean: list[Image.Image]
    corrupted: list[Image.Image]
    questions: list[str]


def make_pairs(what: str, *, n: int = 8, seed: int = 0) -> Pairs:
    """Draws scenes of three objects of the bundled world twice, with one difference.

    Args:
        what: "color" (one object is red or blue) or "shape" (it is a circle or a square).
        n: How many pairs.
        seed: Which ones.

    Raises:
        ValueError: There is no such property, or `n` is less than 1.

    Example:
        >>> pairs = make_pairs("shape", n=2)
        >>> len(pairs.clean), pairs.questions[0].startswith("what shape is at the")
        (2, True)
    """
    changes = {"color": _colored, "shape": _shaped}
    if what not in changes:
        raise ValueError(f"what must be one of {', '.join(map(repr, changes))}, got {what!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    rng, scenes = Random(f"{what} {seed}"), []
    while len(scenes) < n:
        scene = sample_scene(rng, split="test", n_objects=3)
        if scene.objects[0].kind == "shape":
            scenes.append(scene)
    clean, corrupted = ("red", "blue") if what == "color" else ("circle", "square")
    asked = "color is the object" if what == "color" else "shape is"
    return Pairs(
        clean=[_drawn(scene, changes[what], clean) for scene in scenes],
        corrupted=[_drawn(scene, changes[what], corrupted) for scene in scenes],
        questions=[f"what {asked} at the {PLACES[s.objects[0].place]} ?" for s in scenes],
    )


def _drawn(scene: Scene, change: Callable[[SceneObject, str], SceneObject], to: str) -> Image.Image:
    """The scene with its first object changed."""
    first, *others = scene.objects
    changed = replace(scene, objects=(change(first, to), *others))
    return Image.fromarray(draw_images([changed])[0])


def _colored(thing: SceneObject, color: str) -> SceneObject:
    return replace(thing, color=color, pose=replace(thing.pose, rgb=_RGB[color]))


def _shaped(thing: SceneObject, name: str) -> SceneObject:
    return replace(thing, name=name)

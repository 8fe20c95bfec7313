"""Scenes: what lies where, drawn at random and split into train, val and test by content."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from random import Random

from vlm_lens.shapes_llava.digits import SPLITS, digit_indices
from vlm_lens.shapes_llava.words import COLORS, DIGITS, PLACES, SHAPES

SIZE = 64
"""Width and height of a scene in pixels."""
CELL = SIZE / 3
MAX_OBJECTS = 4
DIGIT_SHARE = 0.4
REPEAT_SHARE = 0.4
"""How often a new object takes its colour or its name from one already there.

Without repeats, almost every count would be zero or one and almost no scene would hold the colour
and the shape of a question on two different objects.
"""

_RGB = {
    "red": (215, 35, 35),
    "green": (45, 165, 50),
    "blue": (40, 80, 225),
    "yellow": (238, 202, 25),
    "purple": (165, 55, 190),
    "cyan": (30, 195, 210),
}
_GAP = 0.3
"""Pixels that stay free between an object and the border of its cell."""


@dataclass(frozen=True, slots=True)
class Pose:
    """How one object is drawn: centre and radius in pixels, angle in radians.

    `shear` and `gain` (ink strength) only matter for digits; they are the augmentation of the
    training digits and stay at 0 and 1 in held-out scenes.
    """

    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]
    shear: float = 0.0
    gain: float = 1.0


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object: its words, and how it is drawn.

    Attributes:
        color: one of `COLORS`.
        name: one of `SHAPES` or `DIGITS`.
        place: index into `PLACES`.
        pose: position, size and colour in pixels.
        digit_image: index into `load_digits` for digits, else None.
    """

    color: str
    name: str
    place: int
    pose: Pose
    digit_image: int | None = None

    @property
    def kind(self) -> str:
        """ "shape" or "digit"."""
        return "shape" if self.digit_image is None else "digit"

    @property
    def row(self) -> int:
        return self.place // 3

    @property
    def column(self) -> int:
        return self.place % 3

    @property
    def phrase(self) -> str:
        """The object in words, such as "a red circle at the top left"."""
        return f"a {self.color} {self.name} at the {PLACES[self.place]}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in raster order of their places, and the background they lie on."""

    objects: tuple[SceneObject, ...]
    background: tuple[float, float, float]
    slope: tuple[float, float]
    noise_seed: int

    @property
    def description(self) -> str:
        """One sentence that names every object in raster order."""
        return " and ".join(thing.phrase for thing in self.objects) + " ."


def split_of(description: str) -> str:
    """The split that owns a scene's content: one scene in ten is val, one in ten test.

    Args:
        description: `Scene.description`; equal content means an equal split.

    Example:
        >>> split_of("a red circle at the top left .")
        'train'
    """
    bucket = zlib.crc32(description.encode()) % 10
    return {0: "test", 1: "val"}.get(bucket, "train")


def sample_scene(
    rng: Random,
    *,
    split: str = "train",
    n_objects: int | None = None,
    digit_share: float = DIGIT_SHARE,
) -> Scene:
    """Draws scenes until one belongs to `split`.

    Args:
        rng: source of all randomness.
        split: "train", "val" or "test"; also decides which digit images may be drawn.
        n_objects: 1 to 4; None draws it uniformly.
        digit_share: how many of the objects are digits, on average.

    Raises:
        ValueError: when `split` or `n_objects` is out of range.

    Example:
        >>> scene = sample_scene(Random(0), split="test", n_objects=2)
        >>> len(scene.objects), split_of(scene.description)
        (2, 'test')
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    if n_objects is not None and not 1 <= n_objects <= MAX_OBJECTS:
        raise ValueError(f"n_objects must be between 1 and {MAX_OBJECTS}, got {n_objects}")
    while True:
        contents = _sample_contents(rng, n_objects or rng.randint(1, MAX_OBJECTS), digit_share)
        phrases = [f"a {color} {name} at the {PLACES[place]}" for place, color, name in contents]
        if split_of(" and ".join(phrases) + " .") == split:
            return _place_scene(rng, contents, split)


def _sample_contents(rng: Random, n: int, digit_share: float) -> list[tuple[int, str, str]]:
    pairs: list[tuple[str, str]] = []
    while len(pairs) < n:
        color = rng.choice(COLORS)
        name = rng.choice(DIGITS if rng.random() < digit_share else SHAPES)
        if pairs and rng.random() < REPEAT_SHARE:
            color = rng.choice(pairs)[0]
        elif pairs and rng.random() < REPEAT_SHARE:
            name = rng.choice(pairs)[1]
        if (color, name) not in pairs:
            pairs.append((color, name))
    places = sorted(rng.sample(range(len(PLACES)), n))
    return [(place, color, name) for place, (color, name) in zip(places, pairs, strict=True)]


def _place_scene(rng: Random, contents: list[tuple[int, str, str]], split: str) -> Scene:
    objects = tuple(_place_object(rng, *content, split=split) for content in contents)
    level = rng.uniform(8, 60) if rng.random() < 0.5 else rng.uniform(195, 245)
    tint = [level + rng.uniform(-8, 8) for _ in range(3)]
    return Scene(
        objects=objects,
        background=(tint[0], tint[1], tint[2]),
        slope=(rng.uniform(-12, 12), rng.uniform(-12, 12)),
        noise_seed=rng.getrandbits(32),
    )


def _place_object(rng: Random, place: int, color: str, name: str, *, split: str) -> SceneObject:
    digit = name in DIGITS
    radius = rng.uniform(8.8, 10.2) if digit else rng.uniform(6.8, 9.3)
    slack = CELL / 2 - radius - _GAP
    pose = Pose(
        x=CELL * (place % 3 + 0.5) + rng.uniform(-slack, slack),
        y=CELL * (place // 3 + 0.5) + rng.uniform(-slack, slack),
        radius=radius,
        angle=math.radians(rng.uniform(-12, 12)) if split == "train" or not digit else 0.0,
        rgb=_jitter(rng, _RGB[color]),
        shear=rng.uniform(-0.15, 0.15) if split == "train" and digit else 0.0,
        gain=rng.uniform(0.8, 1.25) if split == "train" and digit else 1.0,
    )
    image = rng.choice(digit_indices(split)[int(name)]) if digit else None
    return SceneObject(color=color, name=name, place=place, pose=pose, digit_image=image)


def _jitter(rng: Random, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(0, value + rng.randint(-18, 18))) for value in rgb)
    return red, green, blue

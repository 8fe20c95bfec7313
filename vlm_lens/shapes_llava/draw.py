"""Drawing: signed distances for shapes, sampled ink for digits, all objects of a batch at once.

Every object is drawn into a 24x24 window around its centre (no object is larger), and the windows
are pasted into the canvases, so the cost grows with the objects and not with the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from vlm_lens.shapes_llava.digits import MARGIN, UPSCALE, digit_glyphs
from vlm_lens.shapes_llava.scenes import SIZE, Scene, SceneObject
from vlm_lens.shapes_llava.words import SHAPES

PATCH = 8
"""Side of one patch of the vision tower, in pixels."""
WINDOW = 24
NOISE = 5.0
"""Standard deviation of the pixel noise, in grey levels."""

_INK_LEVEL = 0.42
_INK_SOFTNESS = 0.3


@dataclass(frozen=True)
class Drawing:
    """Where one object lies in pixels.

    Attributes:
        mask: the pixels of which the object covers at least half.
        box: (x0, y0, x1, y1) tight around the mask, exclusive ends.
        patch_fraction: share of every 8x8-pixel patch that the mask covers.
    """

    mask: Bool[np.ndarray, "64 64"]
    box: tuple[int, int, int, int]
    patch_fraction: Float32[np.ndarray, "8 8"]


def draw_images(scenes: Sequence[Scene]) -> UInt8[np.ndarray, "batch 64 64 3"]:
    """Draws a batch of scenes; the same scene always gives the same pixels.

    Example:
        >>> from random import Random
        >>> from vlm_lens.shapes_llava.scenes import sample_scene
        >>> draw_images([sample_scene(Random(0))]).shape
        (1, 64, 64, 3)
    """
    canvas = np.stack([_background(scene) for scene in scenes])
    owners = [index for index, scene in enumerate(scenes) for _ in scene.objects]
    objects = [thing for scene in scenes for thing in scene.objects]
    alpha, corners = draw_windows(objects)
    rgb = np.array([thing.pose.rgb for thing in objects], dtype=np.float32)
    for owner, ink, color, (x, y) in zip(owners, alpha, rgb, corners.tolist(), strict=True):
        region = canvas[owner, y : y + WINDOW, x : x + WINDOW]
        region += ink[..., None] * (color - region)
    canvas += NOISE * np.stack([_noise(scene.noise_seed) for scene in scenes])
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def locate_objects(scene: Scene) -> list[Drawing]:
    """Gives mask, box and patches of every object of a scene, in the order of its objects.

    Example:
        >>> from random import Random
        >>> from vlm_lens.shapes_llava.scenes import sample_scene
        >>> [drawing] = locate_objects(sample_scene(Random(0), n_objects=1))
        >>> drawing.mask.shape, drawing.patch_fraction.shape
        ((64, 64), (8, 8))
    """
    alpha, corners = draw_windows(scene.objects)
    return [_locate(ink >= 0.5, x, y) for ink, (x, y) in zip(alpha, corners.tolist(), strict=True)]


def _locate(window: Bool[np.ndarray, "24 24"], x: int, y: int) -> Drawing:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[y : y + WINDOW, x : x + WINDOW] = window
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    side = SIZE // PATCH
    fraction = mask.reshape(side, PATCH, side, PATCH).mean(axis=(1, 3), dtype=np.float32)
    return Drawing(mask=mask, box=box, patch_fraction=fraction)


def _background(scene: Scene) -> Float32[np.ndarray, "64 64 3"]:
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    light = scene.slope[0] * ramp[None, :] + scene.slope[1] * ramp[:, None]
    return np.asarray(scene.background, dtype=np.float32) + light[..., None]


def _noise(seed: int) -> Float32[np.ndarray, "64 64 3"]:
    return np.random.default_rng(seed).standard_normal((SIZE, SIZE, 3), dtype=np.float32)


def draw_windows(
    objects: Sequence[SceneObject],
) -> tuple[Float32[np.ndarray, "n 24 24"], Int64[np.ndarray, "n 2"]]:
    """Gives the coverage (0 to 1) of every object in its window, and the window's corner (x, y)."""
    poses = np.array(
        [(o.pose.x, o.pose.y, o.pose.radius, o.pose.angle) for o in objects], dtype=np.float32
    )
    corners = np.clip(np.floor(poses[:, :2]).astype(np.int64) - WINDOW // 2, 0, SIZE - WINDOW)
    u, v = _object_frame(poses, corners)
    alpha = np.empty((len(objects), WINDOW, WINDOW), dtype=np.float32)
    names = np.array([thing.name for thing in objects])
    for shape in SHAPES:
        rows = np.flatnonzero(names == shape)
        distance = _DISTANCES[shape](u[rows], v[rows], poses[rows, 2, None, None])
        alpha[rows] = np.clip(0.5 - distance, 0, 1)
    rows = np.flatnonzero([thing.digit_image is not None for thing in objects])
    if len(rows):
        alpha[rows] = _draw_digits([objects[row] for row in rows.tolist()], u[rows], v[rows])
    return alpha, corners


def _object_frame(
    poses: Float32[np.ndarray, "n 4"], corners: Int64[np.ndarray, "n 2"]
) -> tuple[Float32[np.ndarray, "n 24 24"], Float32[np.ndarray, "n 24 24"]]:
    """Pixel centres of every window, in pixels from the object's centre, turned by its angle."""
    steps = np.arange(WINDOW, dtype=np.float32) + 0.5
    x = (corners[:, 0] - poses[:, 0])[:, None, None].astype(np.float32) + steps[None, None, :]
    y = (corners[:, 1] - poses[:, 1])[:, None, None].astype(np.float32) + steps[None, :, None]
    cos, sin = np.cos(poses[:, 3])[:, None, None], np.sin(poses[:, 3])[:, None, None]
    return cos * x + sin * y, cos * y - sin * x


Grid = Float32[np.ndarray, "n 24 24"]
Column = Float32[np.ndarray, "n 1 1"]


def _circle(u: Grid, v: Grid, radius: Column) -> Grid:
    return np.hypot(u, v) - radius


def _square(u: Grid, v: Grid, radius: Column) -> Grid:
    return np.maximum(np.abs(u), np.abs(v)) - 0.8 * radius


def _triangle(u: Grid, v: Grid, radius: Column) -> Grid:
    slanted = 0.5 * math.sqrt(3) * np.abs(u) - 0.5 * v
    return np.maximum(slanted, v) - 0.5 * radius


def _cross(u: Grid, v: Grid, radius: Column) -> Grid:
    long, short = np.maximum(np.abs(u), np.abs(v)), np.minimum(np.abs(u), np.abs(v))
    return np.maximum(long - 0.94 * radius, short - 0.3 * radius)


def _star(u: Grid, v: Grid, radius: Column) -> Grid:
    """Five points: the plane is folded into half a point, bounded by one straight edge."""
    sector = math.radians(36)
    angle = np.abs((np.arctan2(u, -v) + sector) % (2 * sector) - sector)
    length = np.hypot(u, v)
    along, across = length * np.cos(angle), length * np.sin(angle)
    inner_x, inner_y = 0.45 * math.cos(sector), 0.45 * math.sin(sector)
    norm = math.hypot(inner_y, 1 - inner_x)
    return ((along - radius) * inner_y + across * (1 - inner_x)) / norm


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
}


def _draw_digits(
    objects: Sequence[SceneObject], u: Grid, v: Grid
) -> Float64[np.ndarray, "n 24 24"]:
    """Samples the digit images bilinearly and turns grey ink into soft-edged coverage."""
    shear, gain, radius = np.array(
        [(o.pose.shear, o.pose.gain, o.pose.radius) for o in objects], dtype=np.float32
    ).T[:, :, None, None]
    glyphs = digit_glyphs()[np.array([o.digit_image for o in objects])]
    scale = 4 * UPSCALE / radius  # a radius spans four of the eight source pixels
    centre = (4 + MARGIN) * UPSCALE - 0.5
    ink = _bilinear(glyphs, centre + scale * (u + shear * v), centre + scale * v)
    return np.clip((gain * ink - _INK_LEVEL) / _INK_SOFTNESS + 0.5, 0, 1)


def _bilinear(
    images: Float32[np.ndarray, "n side side"], x: Grid, y: Grid
) -> Float64[np.ndarray, "n 24 24"]:
    side = images.shape[-1]
    x, y = np.clip(x, 0, side - 1.001), np.clip(y, 0, side - 1.001)
    left, top = x.astype(np.int64), y.astype(np.int64)
    right_share, low_share = x - left, y - top
    flat = images.reshape(-1)
    start = (np.arange(len(images)) * side * side)[:, None, None] + top * side + left
    upper = flat[start] * (1 - right_share) + flat[start + 1] * right_share
    lower = flat[start + side] * (1 - right_share) + flat[start + side + 1] * right_share
    return upper * (1 - low_share) + lower * low_share

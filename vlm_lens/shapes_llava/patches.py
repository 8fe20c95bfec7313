"""How the vision tower starts: its filters are the main components of patches, whitened."""

from __future__ import annotations

from random import Random

import torch
from torch.nn.functional import unfold
from transformers import CLIPVisionModel

from vlm_lens.shapes_llava.build import normalize
from vlm_lens.shapes_llava.draw import PATCH, draw_images
from vlm_lens.shapes_llava.scenes import sample_scene

WHITENING_SCENES = 256
WHITENING_FLOOR = 0.01
"""Variance below which a component counts as noise; pixel values are in [-1, 1]."""
PATCH_STD = 0.5
"""Spread of each embedded component at the start."""


@torch.no_grad()
def whiten_patches(tower: CLIPVisionModel, rng: Random) -> None:
    """Starts the patch embedding as the main components of patches, scaled to equal variance.

    Nearly all variance of raw patches is the brightness of the background; from random filters it
    would take long until edges and colours came through.
    """
    pixels = normalize(draw_images([sample_scene(rng) for _ in range(WHITENING_SCENES)]))
    patches = unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    variance, components = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = components * (variance + WHITENING_FLOOR).rsqrt() * PATCH_STD
    embedding = tower.embeddings.patch_embedding.weight
    embedding.copy_(filters.T.flip(0)[: len(embedding)].view_as(embedding))

"""How the vision tower starts: whitened patches, and naming what each patch shows."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, unfold
from transformers import CLIPVisionModel

from vlm_lens.shapes_llava.build import IMAGE_TOKENS, normalize
from vlm_lens.shapes_llava.draw import PATCH, draw_images, locate_objects
from vlm_lens.shapes_llava.scenes import Scene, sample_scene
from vlm_lens.shapes_llava.words import COLORS, NAMES, PLACES

WHITENING_SCENES = 256
WHITENING_FLOOR = 0.01
"""Variance below which a component counts as noise; pixel values are in [-1, 1]."""
LABELS = {"color": COLORS, "name": NAMES, "place": PLACES}
SHOWN_FRACTION = 0.1
"""A patch shows an object that covers more of it than this."""
NOTHING_WEIGHT = 0.1
"""Weight of an empty patch; most patches are empty, and easily seen to be."""
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


class PatchNamer(nn.Module):
    """A linear head that says what each patch shows; it is thrown away after the training.

    Args:
        width: width of the vision tower.
        naming: what is to be said, some of `LABELS`.
    """

    def __init__(self, width: int, naming: Sequence[str]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({key: nn.Linear(width, len(LABELS[key]) + 1) for key in naming})

    def loss(self, tower: CLIPVisionModel, scenes: Sequence[Scene]) -> Float[Tensor, ""]:
        """Weighted mean over patches of the summed cross-entropies of all labels."""
        patches = tower(normalize(draw_images(scenes))).last_hidden_state[:, 1:]
        patches = tower.post_layernorm(patches).flatten(0, 1)
        losses = torch.zeros(len(patches))
        for key, head in self.heads.items():
            labels = label_patches(scenes, key).flatten()
            losses = losses + cross_entropy(head(patches), labels, reduction="none")
            weights = torch.where(labels == len(LABELS[key]), NOTHING_WEIGHT, 1.0)
        return (losses * weights).sum() / weights.sum()


def label_patches(scenes: Sequence[Scene], key: str) -> Int[Tensor, "batch patches"]:
    """Index of the word that each patch shows, the last index where it shows nothing.

    Args:
        scenes: what is drawn.
        key: which word: "color", "name" or "place".
    """
    words = LABELS[key]
    labels = torch.full((len(scenes), IMAGE_TOKENS), len(words))
    for row, scene in enumerate(scenes):
        for thing, drawing in zip(scene.objects, locate_objects(scene), strict=True):
            shown = torch.from_numpy(drawing.patch_fraction.ravel() > SHOWN_FRACTION)
            word = PLACES[thing.place] if key == "place" else getattr(thing, key)
            labels[row, shown] = words.index(word)
    return labels

"""Tiny, randomly initialised models of every family, with real processors and example inputs.

hf_model, processor = build("qwen2_vl")
hf_model(**example("qwen2_vl", hf_model, processor, "image")).logits
"""

from __future__ import annotations

from typing import Any

import torch

from tests.families import blip, gemma, llava, others, qwen, text, tiled, towers
from tests.families.base import Family

_FAMILIES: dict[str, Family] = {
    name: family
    for group in (llava, blip, qwen, gemma, tiled, others)
    for name, family in group.FAMILIES.items()
}
FAMILIES: list[str] = list(_FAMILIES)
_FAMILIES |= text.FAMILIES | towers.FAMILIES | tiled.VARIANTS
TEXT_MODELS: list[str] = list(text.FAMILIES)
TOWERS: list[str] = list(towers.FAMILIES)
ALL_MODELS = [*FAMILIES, *tiled.VARIANTS, *TEXT_MODELS, *TOWERS]
# With those language models alone that differ from all others, where each would cost too much.
MODELS = [*FAMILIES, "llama", "gemma2", "gpt2", "gpt_neox", "bloom", "t5"]
ENCODER_DECODERS = ["instructblip-t5", "blip2-t5", "t5"]
# What `example` can make: the family's record says why a kind is missing.
KINDS: dict[str, list[str]] = {name: family.kinds for name, family in _FAMILIES.items()}


def build(name: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor; `changes` go to the model's configuration."""
    return _FAMILIES[name].build(dtype=dtype, **changes)


def example(name: str, hf_model: Any, processor: Any, kind: str) -> dict[str, torch.Tensor]:
    """Keyword arguments for a forward: "text", "image", "images" (two for one prompt) or "batch".

    A batch holds prompts of different length, padded left, one of them without a picture where
    the family takes such a batch. Qwen2-Audio has recordings where the others have pictures, and
    language models alone have nothing there.
    """
    return _FAMILIES[name].example(hf_model, processor, kind)

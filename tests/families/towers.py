"""Vision towers alone: their processor is their image processor, and they read images alone."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    Siglip2ImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from tests.families.base import HEADS, IMAGE, Family

SQUARE = {"height": 32, "width": 32}


def _family(model_class: str, processor: Any, sizes: dict[str, Any], **settings: Any) -> Family:
    return Family(
        model_class=getattr(transformers, model_class),
        processor=lambda: processor(**sizes),
        config=lambda _tokenizer: {**HEADS, "hidden_size": 32, **settings},
        placeholder="",
        kinds=["image", "batch"],
        is_tower=True,
    )


CROP: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": SQUARE}
WHOLE: dict[str, Any] = {"size": SQUARE}
SIZES: dict[str, Any] = {**IMAGE, "intermediate_size": 48}
LABELS = {"id2label": {0: "circle", 1: "square", 2: "star"}}

FAMILIES: dict[str, Family] = {
    "clip-tower": _family("CLIPVisionModel", CLIPImageProcessorPil, CROP, **SIZES),
    "siglip-tower": _family("SiglipVisionModel", SiglipImageProcessorPil, WHOLE, **SIZES),
    # Pictures keep their shapes, and are filled up to as many patches.
    "siglip2-tower": _family(
        "Siglip2VisionModel",
        Siglip2ImageProcessorPil,
        {"patch_size": 8, "max_num_patches": 20},
        patch_size=8,
        intermediate_size=48,
        num_patches=16,
    ),
    "dinov2": _family("Dinov2Model", BitImageProcessorPil, CROP, **IMAGE, mlp_ratio=2),
    "dinov2-gated": _family(
        "Dinov2Model", BitImageProcessorPil, CROP, **IMAGE, use_swiglu_ffn=True
    ),
    "dinov3": _family(
        "DINOv3ViTModel", ViTImageProcessorPil, WHOLE, **SIZES, num_register_tokens=2
    ),
    "dinov3-gated": _family(
        "DINOv3ViTModel", ViTImageProcessorPil, WHOLE, **SIZES, use_gated_mlp=True
    ),
    "vit": _family("ViTModel", ViTImageProcessorPil, WHOLE, **SIZES),
    "vit-classifier": _family(
        "ViTForImageClassification", ViTImageProcessorPil, WHOLE, **SIZES, **LABELS
    ),
}

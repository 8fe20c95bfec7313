"""Vision towers alone: their hook points are under ``vision_encoder.``, as in a larger model."""

from __future__ import annotations

from typing import Any

from vlm_lens.architectures import model_types
from vlm_lens.architectures.base import Architecture, StackPaths
from vlm_lens.geometry import class_token_layout, patch_layout, siglip2_layout


def _last(config: Any) -> int:
    return config.num_hidden_layers


CLIP = Architecture(
    model_class="CLIPVisionModel",
    vision_encoder=StackPaths(
        config="", start="encoder", blocks="encoder.layers", output_layer=_last
    ),
    layout=class_token_layout,
)


def _siglip(model_class: str, layout: Any) -> Architecture:
    return Architecture(
        model_class=model_class,
        vision_encoder=StackPaths(
            config="",
            start="encoder",
            blocks="encoder.layers",
            block=model_types.CLIP,
            ln_final="post_layernorm",
            output="post_layernorm",
        ),
        layout=layout,
    )


DINOV2 = Architecture(
    model_class="Dinov2Model",
    vision_encoder=StackPaths(
        config="",
        blocks="encoder.layer",
        block=model_types.DINOV2,
        ln_final="layernorm",
        output="layernorm",
    ),
    layout=class_token_layout,
)
DINOV3 = Architecture(
    model_class="DINOv3ViTModel",
    vision_encoder=StackPaths(
        config="",
        blocks="model.layer",
        block=model_types.DINOV3,
        ln_final="norm",
        output="norm",
    ),
    layout=class_token_layout,
)


def _vit(model_class: str, inside: str) -> Architecture:
    return Architecture(
        model_class=model_class,
        vision_encoder=StackPaths(
            config="",
            blocks=f"{inside}layers",
            block=model_types.VIT,
            ln_final=f"{inside}layernorm",
            output=f"{inside}layernorm",
        ),
        layout=class_token_layout,
    )


RECORDS = [
    CLIP,
    _siglip("SiglipVisionModel", patch_layout),
    _siglip("Siglip2VisionModel", siglip2_layout),
    DINOV2,
    DINOV3,
    _vit("ViTModel", ""),
    _vit("ViTForImageClassification", "vit."),
]

"""Idefics3 and SmolVLM: tiles and a global image, pixel shuffle, one linear layer."""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.architectures.base import Architecture, ProjectorPaths, StackPaths
from vlm_lens.geometry import idefics3_layout

IDEFICS3 = Architecture(
    model_class="Idefics3ForConditionalGeneration",
    language_model=StackPaths(
        config="text_config",
        start="model.text_model",
        blocks="model.text_model.layers",
        ln_final="model.text_model.norm",
    ),
    vision_encoder=StackPaths(
        config="vision_config",
        start="model.vision_model.encoder",
        blocks="model.vision_model.encoder.layers",
        ln_final="model.vision_model.post_layernorm",
        output="model.vision_model.post_layernorm",
    ),
    projector=ProjectorPaths(module="model.connector"),
    embed="model.text_model.embed_tokens",
    unembed="lm_head",
    layout=idefics3_layout,
)
SMOLVLM = replace(IDEFICS3, model_class="SmolVLMForConditionalGeneration")

"""Kosmos-2: learnt queries attend to the patches; its text model takes what they find."""

from __future__ import annotations

from vlm_lens.architectures.base import Architecture, ProjectorPaths, StackPaths
from vlm_lens.architectures.model_types import attention
from vlm_lens.geometry import kosmos2_layout

KOSMOS2 = Architecture(
    model_class="Kosmos2ForConditionalGeneration",
    language_model=StackPaths(
        config="text_config",
        blocks="text_model.model.layers",
        ln_final="text_model.model.layer_norm",
    ),
    vision_encoder=StackPaths(
        config="vision_config",
        start="vision_model.model.encoder",
        blocks="vision_model.model.encoder.layers",
        handed_to="image_to_text_projection",
    ),
    projector=ProjectorPaths(
        module="image_to_text_projection",
        attn=attention("image_to_text_projection.x_attn", o="out_proj"),
    ),
    embed="text_model.model.embed_tokens",
    unembed="text_model.lm_head",
    layout=kosmos2_layout,
)

"""Kosmos-2: learnt queries attend to the patches; its text model takes what they find."""

from __future__ import annotations

from vlm_lens.architectures.base import (
    Architecture,
    AttentionPaths,
    ProjectorPaths,
    StackPaths,
)
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
        attn=AttentionPaths(
            module="image_to_text_projection.x_attn",
            q="image_to_text_projection.x_attn.q_proj",
            k="image_to_text_projection.x_attn.k_proj",
            v="image_to_text_projection.x_attn.v_proj",
            o="image_to_text_projection.x_attn.out_proj",
        ),
    ),
    embed="text_model.model.embed_tokens",
    unembed="text_model.lm_head",
    layout=kosmos2_layout,
)

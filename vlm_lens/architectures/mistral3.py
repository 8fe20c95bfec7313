"""Mistral 3 with its Pixtral tower: images in their own size, one sequence for all of them."""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.architectures.base import Architecture, StackPaths
from vlm_lens.architectures.llava import LANGUAGE_MODEL, PROJECTOR, feature_layer
from vlm_lens.architectures.rows import (
    pixtral_merged_rows,
    pixtral_patch_rows,
    pixtral_projector_rows,
)
from vlm_lens.geometry import pixtral_layout

MISTRAL3 = Architecture(
    model_class="Mistral3ForConditionalGeneration",
    language_model=LANGUAGE_MODEL,
    vision_encoder=StackPaths(
        config="vision_config",
        blocks="model.vision_tower.transformer.layers",
        output_layer=feature_layer,
        rows=pixtral_patch_rows,
        rows_from="model.vision_tower",
    ),
    projector=replace(
        PROJECTOR,
        rows_in=pixtral_projector_rows,
        rows_out=pixtral_merged_rows,
        rows_from="model.multi_modal_projector",
    ),
    embed="model.language_model.embed_tokens",
    unembed="lm_head",
    layout=pixtral_layout,
)

"""Mllama (Llama 3.2 Vision): text blocks of two kinds, of which one attends to the image."""

from __future__ import annotations

from vlm_lens.architectures.base import Architecture, ProjectorPaths, StackPaths
from vlm_lens.architectures.rows import mllama_feature_rows, mllama_patch_rows
from vlm_lens.geometry import mllama_layout

MLLAMA = Architecture(
    model_class="MllamaForConditionalGeneration",
    language_model=StackPaths(
        config="text_config",
        blocks="model.language_model.layers",
        ln_final="model.language_model.norm",
    ),
    vision_encoder=StackPaths(
        config="vision_config",
        blocks="model.vision_model.transformer.layers",
        rows=mllama_patch_rows,
        rows_from="model.vision_model",
        sub_stacks={
            "global_transformer": StackPaths(
                config="vision_config",
                blocks="model.vision_model.global_transformer.layers",
                rows=mllama_patch_rows,
                rows_from="model.vision_model",
            )
        },
    ),
    projector=ProjectorPaths(
        module="model.multi_modal_projector",
        rows_in=mllama_feature_rows,
        rows_out=mllama_feature_rows,
        rows_from="model.vision_model",
    ),
    embed="model.language_model.embed_tokens",
    unembed="lm_head",
    layout=mllama_layout,
)

"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one sequence of patches for all images, merged 2x2."""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.architectures.base import Architecture, ProjectorPaths, StackPaths
from vlm_lens.architectures.llava import LANGUAGE_MODEL
from vlm_lens.architectures.rows import qwen_merged_rows, qwen_patch_rows
from vlm_lens.geometry import qwen_vl_layout

VISION_ENCODER = StackPaths(
    config="vision_config",
    blocks="model.visual.blocks",
    output_layer=lambda config: config.vision_config.depth,
    rows=qwen_patch_rows,
    rows_from="model.visual",
)
PROJECTOR = ProjectorPaths(
    module="model.visual.merger",
    linear_1="model.visual.merger.mlp.0",
    linear_2="model.visual.merger.mlp.2",
    rows_in=qwen_patch_rows,
    rows_out=qwen_merged_rows,
    rows_from="model.visual",
)

QWEN2_VL = Architecture(
    model_class="Qwen2VLForConditionalGeneration",
    language_model=LANGUAGE_MODEL,
    vision_encoder=VISION_ENCODER,
    projector=PROJECTOR,
    embed="model.language_model.embed_tokens",
    unembed="lm_head",
    layout=qwen_vl_layout,
)
QWEN2_5_VL = replace(QWEN2_VL, model_class="Qwen2_5_VLForConditionalGeneration")
QWEN3_VL = replace(
    QWEN2_VL,
    model_class="Qwen3VLForConditionalGeneration",
    projector=replace(
        PROJECTOR,
        linear_1="model.visual.merger.linear_fc1",
        linear_2="model.visual.merger.linear_fc2",
        deepstack="model.visual.deepstack_merger_list",
    ),
)

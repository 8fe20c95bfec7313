"""PaliGemma: a SigLIP tower, one linear layer, Gemma or Gemma 2."""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.architectures.base import Architecture, ProjectorPaths
from vlm_lens.architectures.llava import LANGUAGE_MODEL, VISION_ENCODER
from vlm_lens.geometry import fixed_layout

PALIGEMMA = Architecture(
    model_class="PaliGemmaForConditionalGeneration",
    language_model=LANGUAGE_MODEL,
    vision_encoder=replace(
        VISION_ENCODER,
        ln_final="model.vision_tower.post_layernorm",
        output_layer=None,
        output="model.vision_tower.post_layernorm",
    ),
    projector=ProjectorPaths(module="model.multi_modal_projector"),
    embed="model.language_model.embed_tokens",
    unembed="lm_head",
    caps_logits=True,
    layout=fixed_layout,
)

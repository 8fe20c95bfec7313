"""InternVL: tiles and a thumbnail, patches shuffled into channels, a two-layer projector."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlm_lens.architectures.base import Architecture, StackPaths
from vlm_lens.architectures.llava import LANGUAGE_MODEL, PROJECTOR, VISION_ENCODER
from vlm_lens.geometry import internvl_layout


def feature_layer(config: Any) -> int:
    """The hidden state of the tower that InternVL's projector reads, counted from 0."""
    return config.vision_feature_layer % (config.vision_config.num_hidden_layers + 1)


INTERNVL = Architecture(
    model_class="InternVLForConditionalGeneration",
    language_model=LANGUAGE_MODEL,
    vision_encoder=StackPaths(
        config="vision_config",
        blocks="model.vision_tower.encoder.layer",
        output_layer=feature_layer,
    ),
    projector=replace(PROJECTOR, norm="model.multi_modal_projector.layer_norm"),
    embed="model.language_model.embed_tokens",
    unembed="lm_head",
    layout=internvl_layout,
)
INTERNVL_CLIP = replace(
    INTERNVL,
    vision_types=("clip_vision_model",),
    vision_encoder=replace(VISION_ENCODER, output_layer=feature_layer),
)

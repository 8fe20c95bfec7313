"""LLaVA 1.5: a CLIP or SigLIP tower, a two-layer projector, any Llama-like text model."""

from __future__ import annotations

from typing import Any

from vlm_lens.architectures.base import Architecture, ProjectorPaths, StackPaths
from vlm_lens.geometry import fixed_layout


def feature_layer(config: Any) -> int:
    """The deepest hidden state of the tower that LLaVA's projector reads, counted from 0."""
    chosen = config.vision_feature_layer
    n_states = config.vision_config.num_hidden_layers + 1
    return max(layer % n_states for layer in ([chosen] if isinstance(chosen, int) else chosen))


LANGUAGE_MODEL = StackPaths(
    config="text_config",
    start="model.language_model",
    blocks="model.language_model.layers",
    ln_final="model.language_model.norm",
)
VISION_ENCODER = StackPaths(
    config="vision_config",
    start="model.vision_tower.encoder",
    blocks="model.vision_tower.encoder.layers",
    output_layer=feature_layer,
)
PROJECTOR = ProjectorPaths(
    module="model.multi_modal_projector",
    linear_1="model.multi_modal_projector.linear_1",
    linear_2="model.multi_modal_projector.linear_2",
)

LLAVA = Architecture(
    model_class="LlavaForConditionalGeneration",
    language_model=LANGUAGE_MODEL,
    vision_encoder=VISION_ENCODER,
    projector=PROJECTOR,
    embed="model.language_model.embed_tokens",
    unembed="lm_head",
    layout=fixed_layout,
)

"""Qwen2-Audio: a Whisper-like tower for sound, one linear layer, Qwen2."""

from __future__ import annotations

from vlm_lens.architectures.base import Architecture, ProjectorPaths, StackPaths
from vlm_lens.architectures.llava import LANGUAGE_MODEL
from vlm_lens.geometry import audio_layout

QWEN2_AUDIO = Architecture(
    model_class="Qwen2AudioForConditionalGeneration",
    language_model=LANGUAGE_MODEL,
    audio_encoder=StackPaths(
        config="audio_config",
        blocks="model.audio_tower.layers",
        ln_final="model.audio_tower.layer_norm",
        output="model.audio_tower.layer_norm",
    ),
    projector=ProjectorPaths(module="model.multi_modal_projector"),
    embed="model.language_model.embed_tokens",
    unembed="lm_head",
    layout=audio_layout,
)

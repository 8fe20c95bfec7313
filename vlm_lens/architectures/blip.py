"""BLIP-2 and InstructBLIP: a Q-Former reads the image with learnt queries.

Each comes with a decoder (OPT, Llama) or with T5 as text model, so there are two records of each.
"""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.architectures.base import Architecture, ProjectorPaths, StackPaths
from vlm_lens.architectures.model_types import T5_DECODER, T5_ENCODER
from vlm_lens.geometry import query_layout

VISION_ENCODER = StackPaths(
    config="vision_config",
    start="vision_model.encoder",
    blocks="vision_model.encoder.layers",
    output="vision_model",
)
QFORMER = StackPaths(config="qformer_config", blocks="qformer.encoder.layer")
PROJECTOR = ProjectorPaths(module="language_projection")
OPT = StackPaths(
    config="text_config",
    blocks="language_model.model.decoder.layers",
    ln_final="language_model.model.decoder.final_layer_norm",
)
LLAMA = StackPaths(
    config="text_config",
    blocks="language_model.model.layers",
    ln_final="language_model.model.norm",
)
ENCODER = StackPaths(
    config="text_config",
    blocks="language_model.encoder.block",
    block=T5_ENCODER,
    ln_final="language_model.encoder.final_layer_norm",
)
DECODER = StackPaths(
    config="text_config",
    blocks="language_model.decoder.block",
    block=T5_DECODER,
    ln_final="language_model.decoder.final_layer_norm",
)

BLIP2_OPT = Architecture(
    model_class="Blip2ForConditionalGeneration",
    text_types=("opt",),
    language_model=OPT,
    vision_encoder=VISION_ENCODER,
    qformer=QFORMER,
    projector=PROJECTOR,
    embed="language_model.model.decoder.embed_tokens",
    unembed="language_model.lm_head",
    layout=query_layout,
)
BLIP2_T5 = replace(
    BLIP2_OPT,
    text_types=("t5",),
    language_model=DECODER,
    text_encoder=ENCODER,
    embed="language_model.shared",
)
INSTRUCTBLIP_LLAMA = replace(
    BLIP2_OPT,
    model_class="InstructBlipForConditionalGeneration",
    text_types=("llama",),
    language_model=LLAMA,
    embed="language_model.model.embed_tokens",
)
INSTRUCTBLIP_T5 = replace(BLIP2_T5, model_class="InstructBlipForConditionalGeneration")

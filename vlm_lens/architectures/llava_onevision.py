"""LLaVA-OneVision: LLaVA-NeXT with a SigLIP tower; images of many tiles are shrunk."""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.architectures.llava import LLAVA
from vlm_lens.geometry import llava_onevision_layout

LLAVA_ONEVISION = replace(
    LLAVA, model_class="LlavaOnevisionForConditionalGeneration", layout=llava_onevision_layout
)

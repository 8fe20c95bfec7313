"""LLaVA-NeXT: LLaVA on tiles of the image, with a thumbnail first."""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.architectures.llava import LLAVA
from vlm_lens.geometry import llava_next_layout

LLAVA_NEXT = replace(
    LLAVA, model_class="LlavaNextForConditionalGeneration", layout=llava_next_layout
)

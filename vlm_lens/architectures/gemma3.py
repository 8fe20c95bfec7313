"""Gemma 3: a SigLIP tower whose patches are pooled, normed and multiplied with a bare matrix."""

from __future__ import annotations

from dataclasses import replace

from vlm_lens.architectures.base import ProjectorPaths
from vlm_lens.architectures.paligemma import PALIGEMMA
from vlm_lens.geometry import pooled_layout

GEMMA3 = replace(
    PALIGEMMA,
    model_class="Gemma3ForConditionalGeneration",
    projector=ProjectorPaths(
        module="model.multi_modal_projector",
        norm="model.multi_modal_projector.mm_soft_emb_norm",
        norm_offset=1.0,
    ),
    layout=pooled_layout,
)

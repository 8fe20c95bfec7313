"""PaliGemma and Gemma 3: a SigLIP tower, and attention both ways among the tokens of a picture."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.families.base import IMAGE, TEXT, VISION, Family, build_tokenizer, token_ids


def _vision_config() -> SiglipVisionConfig:
    return SiglipVisionConfig(**VISION, **IMAGE, vision_use_head=False)


def _paligemma_processor() -> PaliGemmaProcessor:
    settings: dict[str, Any] = {"size": {"height": 32, "width": 32}, "image_seq_length": 16}
    return PaliGemmaProcessor(
        SiglipImageProcessorPil(**settings), build_tokenizer(bos=False, image_token="<image>")
    )


def _paligemma_config(tokenizer: Any) -> dict[str, Any]:
    text = GemmaConfig(
        **TEXT, **token_ids(), num_key_value_heads=1, head_dim=8, vocab_size=len(tokenizer)
    )
    return {
        "vision_config": _vision_config(),
        "text_config": text,
        "projection_dim": 32,
        "image_token_index": tokenizer.image_token_id,
    }


def _gemma3_processor() -> Gemma3Processor:
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        build_tokenizer(
            image_token="<image_soft_token>",
            boi_token="<start_of_image>",
            eoi_token="<end_of_image>",
        ),
        image_seq_length=4,
    )


def _gemma3_config(tokenizer: Any) -> dict[str, Any]:
    text = Gemma3TextConfig(
        **TEXT,
        **token_ids(),
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        vocab_size=len(tokenizer),
    )
    return {
        "vision_config": _vision_config(),
        "text_config": text,
        "mm_tokens_per_image": 4,
        "boi_token_index": tokenizer.boi_token_id,
        "eoi_token_index": tokenizer.eoi_token_id,
        "image_token_index": tokenizer.image_token_id,
    }


FAMILIES = {
    "paligemma": Family(
        PaliGemmaForConditionalGeneration,
        _paligemma_processor,
        _paligemma_config,
        "<image>",
        # The processor demands pictures, and garbles a prompt without one in a batch.
        kinds=["image", "images", "batch"],
        unused=("labels",),
    ),
    "gemma3": Family(
        Gemma3ForConditionalGeneration,
        _gemma3_processor,
        _gemma3_config,
        "<start_of_image>",
        nested=True,
    ),
}

"""LLaVA-NeXT and LLaVA-OneVision: a grid of tiles and one small picture of the whole."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from tests.families.base import IMAGE, TEXT, VISION, Family, build_tokenizer, token_ids
from vlm_lens.processors import build_processor

PINPOINTS = [[32, 64], [64, 32], [64, 64]]


def _llava_next_processor() -> LlavaNextProcessor:
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=build_tokenizer(image_token="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def _llava_next_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vision_config": CLIPVisionConfig(**VISION, **IMAGE),
        "text_config": MistralConfig(
            **TEXT, **token_ids(), num_key_value_heads=2, vocab_size=len(tokenizer)
        ),
        "image_token_index": tokenizer.image_token_id,
        "image_grid_pinpoints": PINPOINTS,
    }


def _onevision_processor() -> LlavaOnevisionProcessor:
    return build_processor(
        LlavaOnevisionProcessor,
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
        ),
        tokenizer=build_tokenizer(image_token="<image>", video_token="<video>"),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )


def _onevision_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vision_config": SiglipVisionConfig(**VISION, **IMAGE, vision_use_head=False),
        "text_config": Qwen2Config(
            **TEXT, **token_ids(), num_key_value_heads=2, vocab_size=len(tokenizer)
        ),
        "image_token_index": tokenizer.image_token_id,
        "video_token_index": tokenizer.video_token_id,
        "image_grid_pinpoints": PINPOINTS,
    }


FAMILIES = {
    "llava_next": Family(
        LlavaNextForConditionalGeneration, _llava_next_processor, _llava_next_config, "<image>"
    ),
    "llava_onevision": Family(
        LlavaOnevisionForConditionalGeneration, _onevision_processor, _onevision_config, "<image>"
    ),
}

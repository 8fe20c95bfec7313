"""Idefics3, SmolVLM and InternVL: a picture is cut into tiles, which lie in the batch dimension."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import (
    CLIPVisionConfig,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlamaConfig,
    Qwen2Config,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.families.base import IMAGE, TEXT, VISION, Family, build_tokenizer, token_ids
from vlm_lens.processors import build_processor

TILES: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}
ROWS_AND_COLUMNS = [f"<row_{row}_col_{col}>" for row in (1, 2, 3, 4) for col in (1, 2, 3, 4)]


def _idefics3_tokenizer() -> Any:
    return build_tokenizer(
        "<global-img>",
        "<end_of_utterance>",
        *ROWS_AND_COLUMNS,
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
    )


def _idefics3_processor() -> Idefics3Processor:
    return Idefics3Processor(
        Idefics3ImageProcessorPil(**TILES), _idefics3_tokenizer(), image_seq_len=4
    )


def _smolvlm_processor() -> SmolVLMProcessor:
    return build_processor(
        SmolVLMProcessor,
        image_processor=SmolVLMImageProcessorPil(**TILES),
        tokenizer=_idefics3_tokenizer(),
        image_seq_len=4,
    )


def _idefics3_config(tokenizer: Any) -> dict[str, Any]:
    text = LlamaConfig(**TEXT, **token_ids(), num_key_value_heads=2, vocab_size=len(tokenizer))
    return {
        "vision_config": {**VISION, **IMAGE},
        "text_config": text,
        "scale_factor": 2,
        "image_token_id": tokenizer.image_token_id,
        "pad_token_id": 0,
    }


def _internvl_processor() -> InternVLProcessor:
    return build_processor(
        InternVLProcessor,
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=build_tokenizer(
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        image_seq_length=4,
    )


def _internvl_config(tokenizer: Any) -> dict[str, Any]:
    text = Qwen2Config(**TEXT, **token_ids(), num_key_value_heads=2, vocab_size=len(tokenizer))
    image = {"image_size": [32, 32], "patch_size": [8, 8]}
    return {
        "vision_config": {**VISION, **image, "attention_bias": True},
        "text_config": text,
        "image_seq_length": 4,
        "image_token_id": tokenizer.context_image_token_id,
    }


def _internvl_clip_config(tokenizer: Any) -> dict[str, Any]:
    tower = CLIPVisionConfig(**VISION, **IMAGE)
    return {**_internvl_config(tokenizer), "vision_config": tower}


FAMILIES = {
    "idefics3": Family(
        Idefics3ForConditionalGeneration,
        _idefics3_processor,
        _idefics3_config,
        "<image>",
        nested=True,
    ),
    "smolvlm": Family(
        SmolVLMForConditionalGeneration,
        _smolvlm_processor,
        _idefics3_config,
        "<image>",
        nested=True,
    ),
    "internvl": Family(
        InternVLForConditionalGeneration,
        _internvl_processor,
        _internvl_config,
        "<IMG_CONTEXT>",
        sizes=((66, 34), (50, 34)),  # two tiles and the whole, one tile
    ),
}
# Another tower in the same class; what only blocks and layout decide about is tested on it.
VARIANTS = {
    "internvl-clip": replace(FAMILIES["internvl"], config=_internvl_clip_config),
}

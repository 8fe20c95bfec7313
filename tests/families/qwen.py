"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: patches of all pictures in one row, merged two by two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.families.base import TEXT, Family, build_tokenizer, token_ids
from vlm_lens.processors import build_processor

PATCHES = {"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
# Half of a head's 8 channels rotate together; they are split over time, height and width.
ROPE: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
}


def _processor(processor_class: type) -> Callable[[], Any]:
    def processor() -> Any:
        return build_processor(
            processor_class,
            image_processor=Qwen2VLImageProcessorPil(
                patch_size=8,
                merge_size=2,
                temporal_patch_size=2,
                size={"shortest_edge": 16 * 16, "longest_edge": 128 * 128},
            ),
            tokenizer=build_tokenizer(
                bos=False,
                image_token="<|image_pad|>",
                video_token="<|video_pad|>",
                vision_start_token="<|vision_start|>",
                vision_end_token="<|vision_end|>",
            ),
        )

    return processor


def _config(
    vision: dict[str, Any], *, text: dict[str, Any] | None = None
) -> Callable[[Any], dict[str, Any]]:
    def config(tokenizer: Any) -> dict[str, Any]:
        sizes = {**TEXT, **token_ids(), **ROPE, "num_key_value_heads": 2, **(text or {})}
        names = ("image", "video", "vision_start", "vision_end")
        return {
            "vision_config": {**PATCHES, "depth": 3, "num_heads": 4, **vision},
            "text_config": {**sizes, "vocab_size": len(tokenizer)},
            **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names},
        }

    return config


# `hidden_size` is the language model's in Qwen2-VL, the vision tower's in its successors.
QWEN2_VISION = {"embed_dim": 32, "hidden_size": 32}
# A window holds two by two merged patches; the blocks around the middle one see windows only.
QWEN2_5_VISION = {
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "window_size": 32,
    "fullatt_block_indexes": [1],
}
QWEN3_VISION = {
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [1],
}


def _family(model_class: Any, processor_class: type, config: Any, **settings: Any) -> Family:
    placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    return Family(model_class, _processor(processor_class), config, placeholder, **settings)


FAMILIES = {
    "qwen2_vl": _family(Qwen2VLForConditionalGeneration, Qwen2VLProcessor, _config(QWEN2_VISION)),
    "qwen2_5_vl": _family(
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        _config(QWEN2_5_VISION),
        sizes=((82, 50), (34, 66)),  # several windows, some of them cut off by the border
    ),
    "qwen3_vl": _family(
        Qwen3VLForConditionalGeneration,
        Qwen3VLProcessor,
        _config(QWEN3_VISION, text={"head_dim": 8}),
    ),
}

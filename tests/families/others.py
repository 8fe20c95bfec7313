"""Mllama (cross-attention), Mistral 3 (Pixtral), Kosmos-2 and Qwen2-Audio."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import (
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    MllamaForConditionalGeneration,
    MllamaProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    Qwen2AudioEncoderConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Config,
    WhisperFeatureExtractor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from tests.families.base import IMAGE, TEXT, VISION, Family, build_tokenizer, token_ids
from vlm_lens.processors import build_processor


def _mllama_processor() -> MllamaProcessor:
    return MllamaProcessor(
        MllamaImageProcessorPil(size={"height": 32, "width": 32}, max_image_tiles=4),
        build_tokenizer("<|python_tag|>", bos=False, image_token="<|image|>"),
    )


def _mllama_config(tokenizer: Any) -> dict[str, Any]:
    vision = {
        **IMAGE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "attention_heads": 4,
        "num_hidden_layers": 3,
        "num_global_layers": 1,
        "intermediate_layers_indices": [0, 2],
        "vision_output_dim": 32 * 3,  # two layers in between and the last
        "max_num_tiles": 4,
    }
    return {
        "vision_config": vision,
        "text_config": {
            **TEXT,
            **token_ids(),
            "num_key_value_heads": 2,
            "cross_attention_layers": [1],
            "vocab_size": len(tokenizer),
        },
        "image_token_index": tokenizer.image_token_id,
    }


def _mistral3_processor() -> Any:
    return build_processor(
        PixtralProcessor,
        image_processor=PixtralImageProcessorPil(
            size={"longest_edge": 64}, patch_size={"height": 8, "width": 8}
        ),
        tokenizer=build_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=8,
        spatial_merge_size=2,
    )


def _mistral3_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "vision_config": PixtralVisionConfig(**VISION, image_size=64, patch_size=8),
        "text_config": MistralConfig(
            **TEXT, **token_ids(), num_key_value_heads=2, head_dim=8, vocab_size=len(tokenizer)
        ),
        "image_token_index": tokenizer.convert_tokens_to_ids("[IMG]"),
        "spatial_merge_size": 2,
    }


def _kosmos2_processor() -> Kosmos2Processor:
    processor = Kosmos2Processor(
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        build_tokenizer(bos=False),
        num_patch_index_tokens=4,
    )
    processor.num_image_tokens = 4  # of the class, and 64, as in the one checkpoint there is
    return processor


def _kosmos2_config(tokenizer: Any) -> dict[str, Any]:
    text = {
        "embed_dim": 32,
        "layers": 3,
        "ffn_dim": 64,
        "attention_heads": 4,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "max_position_embeddings": 128,
        "vocab_size": len(tokenizer),
    }
    return {
        "vision_config": {**VISION, **IMAGE},
        "text_config": {**text, **token_ids()},
        "latent_query_num": 4,
    }


def _qwen2_audio_processor() -> Qwen2AudioProcessor:
    return Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=16, chunk_length=1),
        build_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", bos=False),
    )


def _qwen2_audio_config(tokenizer: Any) -> dict[str, Any]:
    return {
        "audio_config": Qwen2AudioEncoderConfig(
            num_mel_bins=16,
            d_model=32,
            encoder_layers=3,
            encoder_attention_heads=4,
            encoder_ffn_dim=48,
            max_source_positions=50,
        ),
        "text_config": Qwen2Config(
            **TEXT, **token_ids(), num_key_value_heads=2, vocab_size=len(tokenizer)
        ),
        "audio_token_index": tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    }


def _recordings(processor: Any, media: list[list[int]]) -> dict[str, Any]:
    """Noise of two lengths, where the other families have pictures of two sizes."""
    rate = processor.feature_extractor.sampling_rate
    noise = np.random.default_rng(0).standard_normal(rate).astype(np.float32)
    lengths = (rate // 2, rate * 4 // 5)
    recordings = [noise[: lengths[number]] for numbers in media for number in numbers]
    return {"audio": recordings, "sampling_rate": rate}


FAMILIES = {
    "mllama": Family(
        MllamaForConditionalGeneration, _mllama_processor, _mllama_config, "<|image|>", nested=True
    ),
    "mistral3": Family(
        Mistral3ForConditionalGeneration, _mistral3_processor, _mistral3_config, "[IMG]"
    ),
    "kosmos2": Family(
        Kosmos2ForConditionalGeneration,
        _kosmos2_processor,
        _kosmos2_config,
        "",
        # The processor puts one picture in front of every prompt, the forward demands pictures.
        kinds=["image", "batch"],
    ),
    "qwen2_audio": Family(
        Qwen2AudioForConditionalGeneration,
        _qwen2_audio_processor,
        _qwen2_audio_config,
        "<|audio_bos|><|AUDIO|><|audio_eos|>",
        media=_recordings,
    ),
}

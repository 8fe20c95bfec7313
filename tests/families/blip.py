"""InstructBLIP and BLIP-2, each with a decoder and with an encoder-decoder language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import (
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    LlamaConfig,
    OPTConfig,
    T5Config,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tests.families.base import IMAGE, TEXT, VISION, Family, build_tokenizer, token_ids

QUERIES = 4
# The processor puts the queries of one picture in front of every prompt: there are no prompts of
# two pictures, and none without in a batch. Neither model has a forward without a picture.
KINDS = ["image", "batch"]
QFORMER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "cross_attention_frequency": 2,
    "encoder_hidden_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def _image_processor() -> BlipImageProcessorPil:
    return BlipImageProcessorPil(size={"height": 32, "width": 32})


def _instructblip_processor() -> InstructBlipProcessor:
    return InstructBlipProcessor(
        _image_processor(),
        build_tokenizer("<image>"),
        qformer_tokenizer=build_tokenizer(),
        num_query_tokens=QUERIES,
    )


def _blip2_processor() -> Blip2Processor:
    return Blip2Processor(_image_processor(), build_tokenizer("<image>"), num_query_tokens=QUERIES)


def _llama(vocab_size: int) -> LlamaConfig:
    return LlamaConfig(**TEXT, **token_ids(), num_key_value_heads=2, vocab_size=vocab_size)


def _opt(vocab_size: int) -> OPTConfig:
    return OPTConfig(
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        dropout=0.0,
        vocab_size=vocab_size,
        **token_ids(),
    )


def _t5(vocab_size: int) -> T5Config:
    settings: dict[str, Any] = {"tie_word_embeddings": False, "decoder_start_token_id": 0}
    return T5Config(  # gated, and its outputs not scaled, as Flan-T5
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=3,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        vocab_size=vocab_size,
        **settings,
        **token_ids(),
    )


def _instructblip_config(text: Callable[[int], Any]) -> Callable[[Any], dict[str, Any]]:
    def config(tokenizer: Any) -> dict[str, Any]:
        return {
            "vision_config": InstructBlipVisionConfig(**VISION, **IMAGE),
            "qformer_config": InstructBlipQFormerConfig(**QFORMER, vocab_size=len(tokenizer)),
            **_shared_config(tokenizer, text),
        }

    return config


def _blip2_config(text: Callable[[int], Any]) -> Callable[[Any], dict[str, Any]]:
    def config(tokenizer: Any) -> dict[str, Any]:
        return {
            "vision_config": Blip2VisionConfig(**VISION, **IMAGE),
            "qformer_config": Blip2QFormerConfig(**QFORMER, vocab_size=len(tokenizer)),
            **_shared_config(tokenizer, text),
        }

    return config


def _shared_config(tokenizer: Any, text: Callable[[int], Any]) -> dict[str, Any]:
    return {
        "text_config": text(len(tokenizer)),
        "num_query_tokens": QUERIES,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }


def _family(model_class: Any, processor: Callable[[], Any], config: Any) -> Family:
    return Family(model_class, processor, config, placeholder="", kinds=KINDS)


FAMILIES = {
    "instructblip-llama": _family(
        InstructBlipForConditionalGeneration, _instructblip_processor, _instructblip_config(_llama)
    ),
    "instructblip-t5": _family(
        InstructBlipForConditionalGeneration, _instructblip_processor, _instructblip_config(_t5)
    ),
    "blip2-opt": _family(Blip2ForConditionalGeneration, _blip2_processor, _blip2_config(_opt)),
    "blip2-t5": _family(Blip2ForConditionalGeneration, _blip2_processor, _blip2_config(_t5)),
}

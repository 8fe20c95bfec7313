"""Tiny, randomly initialised models of every supported pairing, with real processors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from vlm_lens import HookedVLM
from vlm_lens.inputs import Inputs

WORDS = [
    *("what", "color", "is", "the", "circle", "square", "red", "blue", "green"),
    *("left", "right", "a", "one", "two", "?", ".", ":"),
]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<image>"]
TINY = [f"{tower}-{text}" for tower in ("clip", "siglip") for text in ("llama", "mistral", "qwen2")]


@dataclass
class Tiny:
    """A tiny model, and inputs of every kind for it."""

    name: str
    hf: Any
    processor: Any
    model: HookedVLM

    def inputs(self, kind: str) -> Inputs:
        """Inputs: "text", "image", "images" (two for one prompt) or "batch" (padded, mixed)."""
        one, two = picture(0), picture(1, size=(50, 34))
        if kind == "text":
            return self.model.prepare(text="what color is the circle ?")
        if kind == "image":
            return self.model.prepare(images=one, text="what color is the circle ?")
        if kind == "images":
            return self.model.prepare(images=[one, two], text="<image> left <image> right ?")
        return self.model.prepare(
            images=[one, None, two], text=["what color ?", "is the square red ?", "circle"]
        )


INPUT_KINDS = ["text", "image", "images", "batch"]


def picture(seed: int, *, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A picture of noise, width by height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def build_tokenizer() -> PreTrainedTokenizerFast:
    vocab = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_specific_special_tokens={"image_token": "<image>"},
    )


def build_tiny(name: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> Tiny:
    """Build ``tower-text``; `changes` go to the LLaVA configuration."""
    tower, text = name.split("-")
    torch.manual_seed(0)
    hf = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=_vision_config(tower),
            text_config=_text_config(text),
            image_token_id=SPECIAL.index("<image>"),
            vision_feature_select_strategy="default" if tower == "clip" else "full",
            **{"vision_feature_layer": -2, **changes},
        )
    )
    _enlarge(hf)
    hf = hf.to(dtype).eval()
    processor = _processor(tower)
    return Tiny(name, hf, processor, HookedVLM(hf, processor=processor))


def _vision_config(tower: str) -> Any:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    kind = CLIPVisionConfig if tower == "clip" else SiglipVisionConfig
    return kind(**sizes, image_size=32, patch_size=8)


def _text_config(text: str) -> Any:
    kind = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}[text]
    return kind(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4 if text == "llama" else 2,
        vocab_size=len(SPECIAL + WORDS),
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _enlarge(hf: torch.nn.Module) -> None:
    """Random weights as they come barely move the logits; norms and biases of 1 and 0 hide bugs."""
    for parameter in hf.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        else:
            parameter.data.mul_(5)


def _processor(tower: str) -> LlavaProcessor:
    image_processor = (
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        if tower == "clip"
        else SiglipImageProcessorPil(size={"height": 32, "width": 32})
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        num_additional_image_tokens=1 if tower == "clip" else 0,
    )

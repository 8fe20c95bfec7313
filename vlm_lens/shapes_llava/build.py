"""The untrained model and its processor: plain Hugging Face LLaVA classes, only small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vlm_lens.shapes_llava.draw import PATCH
from vlm_lens.shapes_llava.scenes import SIZE
from vlm_lens.shapes_llava.words import vocabulary

IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)
IMAGE_TOKENS = (SIZE // PATCH) ** 2
ANSWER = "answer :"
"""What stands between a question and its answer: the generation prompt."""

POSITION_STD = 0.3
"""Initial spread of the patches' positions: about that of the embedded pixels, so that the model
sees from the first step where a patch lies."""
EMBEDDING_STD = 1.0
ADDED_SHARE = 0.1
"""Initial spread of the word embeddings, and the share of the usual of what the text layers add to
them: at first the residual stream holds the words as they are, which lookups can build on."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' %} answer : {% endif -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<image>"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' %} <eos>{% endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %} answer :{% endif -%}"
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths and depths of the model; the defaults are those of the bundled weights."""

    vision_width: int = 128
    vision_layers: int = 4
    text_width: int = 128
    text_layers: int = 6
    text_mlp: int = 384
    heads: int = 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, lower case, `<bos>` in front, padding on the left.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.decode(tokenizer("Where is the circle?").input_ids)
        '<bos> where is the circle ?'
    """
    vocab = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_processor() -> LlavaProcessor:
    """Tokenizer and image processor (64x64, centre crop, pixel values in [-1, 1])."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": SIZE},
            crop_size={"height": SIZE, "width": SIZE},
            image_mean=list(IMAGE_MEAN),
            image_std=list(IMAGE_STD),
        ),
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(size: Size | None = None) -> LlavaForConditionalGeneration:
    """A model with random weights, drawn from torch's global random state."""
    size, vocab = size or Size(), vocabulary()
    ids: dict[str, Any] = {f"{name}_token_id": vocab[f"<{name}>"] for name in ("pad", "bos", "eos")}
    vision = CLIPVisionConfig(
        image_size=SIZE,
        patch_size=PATCH,
        hidden_size=size.vision_width,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.heads,
        projection_dim=size.text_width,
        initializer_range=0.05,
    )
    text = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=size.text_width,
        intermediate_size=size.text_mlp,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=size.text_width**-0.5,
        **ids,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=vocab["<image>"],
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **ids,
    )
    model = LlavaForConditionalGeneration(config)
    _scale_weights(model)
    return model


@torch.no_grad()
def _scale_weights(model: LlavaForConditionalGeneration) -> None:
    """Sets the initial scales that make a model as small as this one learn fast."""
    text, tower = model.model.language_model, model.model.vision_tower
    torch.nn.init.normal_(tower.embeddings.position_embedding.weight, std=POSITION_STD)
    torch.nn.init.normal_(text.embed_tokens.weight, std=EMBEDDING_STD)
    for layer in text.layers:
        layer.self_attn.o_proj.weight.mul_(ADDED_SHARE)
        layer.mlp.down_proj.weight.mul_(ADDED_SHARE)


def normalize(images: UInt8[np.ndarray, "batch 64 64 3"]) -> Float[Tensor, "batch 3 64 64"]:
    """What the processor does to a 64x64 image: rescale, subtract the mean, divide by the std."""
    mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
    pixels = torch.tensor(images).float() / 255
    return ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()

"""Tiny processors and models for the tests of the inputs."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

torch.set_num_threads(1)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = ["what", "color", "is", "it", "?", "red", "blue", "one", "two", "USER", ":", "ASSISTANT"]

# LLaVA-1.5's template writes the images of a message first, then its texts.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEXT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'].upper() + ': ' + message['content'] + ' ' }}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def build_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    """A word tokenizer that puts a bos token in front; `special` overrides its special tokens."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        extra_special_tokens={"image_token": "<image>"},
        **{name: token for name, token in {**tokens, **special}.items() if token is not None},
    )


def build_processor(
    kind: str = "clip",
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    chat_template: str | None = None,
) -> LlavaProcessor:
    """A processor for 32 x 32 pixels and 4 x 4 patches, "clip" or "siglip"."""
    image_processor = (
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        if kind == "clip"
        else SiglipImageProcessorPil(size={"height": 32, "width": 32})
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer or build_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default" if kind == "clip" else "full",
        num_additional_image_tokens=1 if kind == "clip" else 0,
        chat_template=chat_template,
    )


def build_config(kind: str = "clip") -> LlavaConfig:
    """The config of a tiny LLaVA whose image features are its patch embeddings, not yet mixed."""
    vision_class = CLIPVisionConfig if kind == "clip" else SiglipVisionConfig
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = vision_class(**sizes, num_attention_heads=2, image_size=32, patch_size=8)
    text = LlamaConfig(
        **sizes, num_attention_heads=2, vocab_size=len(SPECIAL + WORDS), max_position_embeddings=96
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-2,  # what enters the only layer (HF fails on 0, which means the same)
        vision_feature_select_strategy="default" if kind == "clip" else "full",
    )


def build_model(kind: str = "clip") -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(build_config(kind)).eval()


@pytest.fixture(scope="module", params=["clip", "siglip"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param

"""The model and its processor, put together from their parts: Hugging Face's InternVL classes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from vlm_lens.gguf import dequantised, smollm2_file
from vlm_lens.processors import build_processor as build_without_videos
from vlm_lens.shapes_llava import WEIGHTS as SHAPES_LLAVA
from vlm_lens.shapes_llava.build import IMAGE_MEAN, IMAGE_STD
from vlm_lens.shapes_llava.draw import PATCH
from vlm_lens.shapes_llava.scenes import SIZE
from vlm_lens.shapes_smollm2 import NAME, WEIGHTS
from vlm_lens.shapes_smollm2.adapters import merge_adapters

CONNECTOR = WEIGHTS / "connector.safetensors"
"""The trained connector, with its adapters."""
MERGED = 2
"""An image token is a square of so many patches a side."""
IMAGE_TOKENS = (SIZE // PATCH // MERGED) ** 2

IMAGE_START, IMAGE_END, IMAGE, VIDEO = "<img>", "</img>", "<IMG_CONTEXT>", "<video>"
_RENAMED = {
    "<jupyter_start>": IMAGE_START,
    "<jupyter_text>": IMAGE_END,
    "<empty_output>": IMAGE,
    "<jupyter_script>": VIDEO,
}
"""SmolLM2's tokens for notebooks, and what they stand for here: its vocabulary stays as it is."""

_SPECIAL = ("bos", "eos", "pad")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' %} {% else %}<|im_start|>{% endif -%}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}<IMG_CONTEXT>"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' %}<|im_end|>{% else %} Answer:{% endif -%}"
    "{%- endfor -%}"
)


def language_model_folder() -> Path:
    """The folder of SmolLM2's weights, with its tokenizer.

    Raises:
        ImportError: The package that they come in is not installed; the message says the command.
    """
    return dequantised(*smollm2_file())


def build_tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, four of its unused tokens renamed, padding on the left."""
    original = AutoTokenizer.from_pretrained(language_model_folder())
    text = original.backend_tokenizer.to_str()
    for old, new in _RENAMED.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token=original.bos_token,
        eos_token=original.eos_token,
        pad_token=original.pad_token,
        unk_token=original.unk_token,
        extra_special_tokens={
            "start_image_token": IMAGE_START,
            "end_image_token": IMAGE_END,
            "context_image_token": IMAGE,
            "video_token": VIDEO,
        },
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=original.model_max_length,
    )


def build_processor() -> InternVLProcessor:
    """Tokenizer and image processor (one tile of 64x64, pixel values in [-1, 1])."""
    return build_without_videos(
        InternVLProcessor,
        image_processor=GotOcr2ImageProcessorPil(
            size={"height": SIZE, "width": SIZE},
            crop_to_patches=True,
            min_patches=1,
            max_patches=1,
            image_mean=list(IMAGE_MEAN),
            image_std=list(IMAGE_STD),
        ),
        tokenizer=build_tokenizer(),
        image_seq_length=IMAGE_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(connector: Path | None, **options: Any) -> InternVLForConditionalGeneration:
    """The tower of `shapes-llava`, a connector, and SmolLM2.

    Args:
        connector: The file of a trained connector with its adapters; None for a random connector,
            drawn from torch's global random state, and no adapters.
        **options: For loading the language model, such as `dtype`.

    Raises:
        ImportError: SmolLM2's package is not installed; the message says the command.
    """
    text: Any = LlamaForCausalLM.from_pretrained(language_model_folder(), **options)
    llava: Any = LlavaForConditionalGeneration.from_pretrained(SHAPES_LLAVA)
    tokenizer: Any = build_tokenizer()
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
    config = InternVLConfig(
        vision_config=llava.config.vision_config,
        text_config=text.config,
        image_token_id=image_token_id,
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=1 / MERGED,
        vision_feature_layer=-1,
        **{f"{name}_token_id": getattr(text.config, f"{name}_token_id") for name in _SPECIAL},
    )
    model: Any = _put_together(config, tower=llava.model.vision_tower, text=text)
    if connector is not None:
        weights = load_file(connector)
        model.model.multi_modal_projector.load_state_dict(under("connector.", weights))
        merge_adapters(text.model.layers, under("adapters.", weights))
    # A configuration that is put into another one forgets how its part attends.
    model.set_attn_implementation(options.get("attn_implementation") or "sdpa")
    return model.to(text.dtype).eval()


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights whose names begin with a prefix, without it.

    Example:
        >>> import torch
        >>> list(under("a.", {"a.x": torch.zeros(1), "b.x": torch.zeros(1)}))
        ['x']
    """
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _put_together(
    config: InternVLConfig, *, tower: nn.Module, text: LlamaForCausalLM
) -> InternVLForConditionalGeneration:
    """The class around parts that have their weights: built hollow, so that none is drawn twice."""
    hollow: Any = copy.deepcopy(config)
    hollow.text_config.num_hidden_layers = 0
    hollow.text_config.vocab_size, hollow.text_config.pad_token_id = 1, None
    hollow.vision_config.num_hidden_layers = 0
    model: Any = InternVLForConditionalGeneration(hollow)
    model.config = model.model.config = config
    model.model.vision_tower, model.model.language_model = tower, text.model
    model.lm_head = text.lm_head
    model.generation_config = GenerationConfig.from_model_config(config)
    model.name_or_path = config.name_or_path = NAME
    return model

"""The models that the benchmarks measure, each with one image and one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from vlm_lens.loading import BUNDLED, bundled_path, load_model_and_processor

IMAGE_TOKEN, FIRST_WORD = 4, 5
"""The special tokens come first, as in the bundled model."""

N_TEXT = 32
"""Text positions of the prompt, the first token included."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Widths and depths of a LLaVA; heads are 64 wide, or 16 in a model narrower than that."""

    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    text_mlp: int
    vocabulary: int
    image: int
    patch: int = 14


SIZES = {
    "small": Size(
        vision_width=64,
        vision_layers=4,
        text_width=64,
        text_layers=4,
        text_mlp=128,
        vocabulary=200,
        image=56,
    ),
    "39m": Size(
        vision_width=320,
        vision_layers=8,
        text_width=512,
        text_layers=8,
        text_mlp=1376,
        vocabulary=3000,
        image=168,
    ),
}


@dataclass(frozen=True)
class Subject:
    """A model under measurement and the keyword arguments of its forward."""

    name: str
    hf_model: Any
    inputs: dict[str, Tensor]

    @property
    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.hf_model.parameters())


def available() -> list[str]:
    """The names that `build` takes: random models of each size, and the bundled one if there."""
    return [*SIZES, *([BUNDLED] if (bundled_path() / "config.json").exists() else [])]


def build(name: str) -> Subject:
    """A model in evaluation mode, with the same inputs every time."""
    torch.manual_seed(0)
    if name == BUNDLED:
        hf_model, _ = load_model_and_processor(name, dtype=None, device=None)
    else:
        hf_model = LlavaForConditionalGeneration(llava_config(SIZES[name])).eval()
    return Subject(name, hf_model, _inputs(hf_model.config))


def llava_config(size: Size) -> LlavaConfig:
    """A CLIP tower, a projector and a Llama of this size."""
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=_heads(size.vision_width),
        image_size=size.image,
        patch_size=size.patch,
    )
    text = LlamaConfig(
        hidden_size=size.text_width,
        intermediate_size=size.text_mlp,
        num_hidden_layers=size.text_layers,
        num_attention_heads=_heads(size.text_width),
        vocab_size=size.vocabulary,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN,
        image_seq_length=(size.image // size.patch) ** 2,
        vision_feature_layer=-2,
    )


def _heads(width: int) -> int:
    return width // (64 if width > 64 else 16)


def _inputs(config: Any) -> dict[str, Tensor]:
    """One random image and a prompt: a first token, the image, random words."""
    image = torch.full((config.image_seq_length,), config.image_token_id)
    words = torch.randint(FIRST_WORD, config.text_config.vocab_size, (N_TEXT - 1,))
    tokens = torch.cat([torch.tensor([config.text_config.bos_token_id]), image, words])[None]
    side = config.vision_config.image_size
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "pixel_values": torch.randn(1, 3, side, side),
    }

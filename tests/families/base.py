"""What all families share: words, pictures, random weights, and the record of one family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from vlm_lens.inputs.media import tokenizer_of

WORDS = [
    *("what", "color", "is", "the", "circle", "square", "red", "blue", "green"),
    *("left", "right", "a", "one", "two", "?", ".", ":"),
]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]
KINDS = ["text", "image", "images", "batch"]

# Every vision tower and every language model is this small, whatever the family calls the sizes.
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_hidden_layers": 3}
VISION: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, **HEADS}
TEXT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, **HEADS}
IMAGE: dict[str, Any] = {"image_size": 32, "patch_size": 8}


@dataclass(frozen=True)
class Family:
    """How to build the tiny model of one family, and what its processor takes.

    Args:
        model_class: The class of the model.
        processor: Builds the processor.
        config: Settings of the model's configuration, for a tokenizer.
        placeholder: What stands for one image in a prompt.
        kinds: The kinds of example that the family takes.
        sizes: Width and height of the first and of the second picture.
        nested: Whether the images of a batch come as one list a prompt.
        unused: What the processor returns and a plain forward does not take.
        media: Builds the input that the placeholders stand for, and its keyword.
        is_tower: Whether it reads pictures and nothing else.
    """

    model_class: Any
    processor: Callable[[], Any]
    config: Callable[[Any], dict[str, Any]]
    placeholder: str
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    sizes: tuple[tuple[int, int], tuple[int, int]] = ((50, 34), (34, 66))
    nested: bool = False
    unused: tuple[str, ...] = ()
    media: Callable[[Any, list[list[int]]], dict[str, Any]] | None = None
    is_tower: bool = False

    def build(self, *, dtype: torch.dtype, **changes: Any) -> tuple[Any, Any]:
        processor = self.processor()
        tokenizer = None if self.is_tower else tokenizer_of(processor)
        settings = {**self.config(tokenizer), **changes}
        torch.manual_seed(0)
        hf = self.model_class(self.model_class.config_class(**settings))
        randomise(hf)
        return hf.to(dtype).eval(), processor

    def example(self, hf_model: Any, processor: Any, kind: str) -> dict[str, torch.Tensor]:
        if self.is_tower:
            pictures = [picture(i, size=size) for i, size in enumerate(self.sizes)]
            shown = pictures if kind == "batch" else pictures[:1]
            return dict(processor(images=shown, return_tensors="pt"))
        texts, media = self.prompts(kind)
        encoded = processor(
            text=texts, padding=True, return_tensors="pt", **self.media_inputs(processor, media)
        )
        inputs = {key: value for key, value in encoded.items() if key not in self.unused}
        if hf_model.config.get_text_config().is_encoder_decoder:
            answer = torch.tensor([[0, 5, 6]])  # starts with the padding token, as T5's do
            inputs["decoder_input_ids"] = answer.repeat(len(texts), 1)
        return inputs

    def prompts(self, kind: str) -> tuple[list[str], list[list[int]]]:
        """Texts, and for each the numbers of its pictures: 0 or 1."""
        here = self.placeholder
        question = "what color is the circle ?"
        if kind == "text" or (kind == "image" and kind not in self.kinds):
            return [question], [[]]
        if kind == "image":
            return [f"{here} {question}"], [[0]]
        if kind == "images":
            return [f"{here} left {here} right ?"], [[0, 1]]
        if "text" in self.kinds:
            texts = [f"{here} what color ?", "is the square red ?", f"{here} circle"]
            return texts, [[0], [], [1]]
        return [f"{here} what color ?", f"{here} circle"], [[0], [1]]

    def media_inputs(self, processor: Any, media: list[list[int]]) -> dict[str, Any]:
        if not any(media):
            return {}
        if self.media is not None:
            return self.media(processor, media)
        images = [[picture(i, size=self.sizes[i]) for i in numbers] for numbers in media]
        return {"images": images if self.nested else sum(images, [])}


def picture(seed: int, *, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A picture of noise, width by height."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def build_tokenizer(*special: str, bos: bool = True, **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words.

    Args:
        *special: More special tokens, which are not split and have no name.
        bos: Whether it puts `<bos>` in front; some processors do so themselves.
        **named: Special tokens under their names: `image_token` becomes an attribute.
    """
    words = [*SPECIAL, *special, *named.values(), *WORDS]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", vocab["<bos>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=list(special),
        model_specific_special_tokens=named,
    )


def token_ids() -> dict[str, Any]:
    """Ids of the special tokens that every language model's configuration names."""
    return {f"{name}_token_id": SPECIAL.index(f"<{name}>") for name in ("pad", "bos", "eos")}


def randomise(hf: torch.nn.Module) -> None:
    """Random weights, big enough that every neuron moves the logits.

    Weights as they come barely move them, some start at zero (class embeddings, gates), and norms
    and biases of 1 and 0 hide bugs.
    """
    for name, parameter in hf.named_parameters():
        if "gate" in name.rpartition(".")[2] and parameter.numel() == 1:
            parameter.data.uniform_(0.5, 1)
        elif parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        else:
            parameter.data.normal_(std=0.1)

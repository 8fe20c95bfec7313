"""The configuration of a HookedVLM, under TransformerLens' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformer_lens.config import TransformerLensConfig

from vlm_lens.architectures import Architecture, StackPaths
from vlm_lens.architectures.base import config_at, size_in
from vlm_lens.architectures.components import HookedStack
from vlm_lens.hooks import Place
from vlm_lens.hooks.adapters import beneath


@dataclass
class HookedVLMConfig(TransformerLensConfig):
    """Sizes of the language model, as TransformerLens' tools expect them, and of the encoder.

    Of a tower alone, the sizes are the tower's, and there is no vocabulary.

    Attributes:
        model_name: Where the model was loaded from.
        architecture: Name of the Hugging Face class.
        image_token_id: Id of the token that stands for one image position; None where images have
            no token of their own.
        video_token_id: Id of the token that stands for a video, or for one position of it.
        audio_token_id: Id of the token that stands for one position of sound.
        d_vocab_out: How many tokens the model predicts; `d_vocab` is how many it embeds.
        is_encoder_decoder: Whether the language model is an encoder with a decoder.
        use_attn_in: Set by `HookedVLM.set_use_attn_in`, like `use_attn_result` and
            `use_split_qkv_input` by theirs.
        use_hook_mlp_in: Set by `HookedVLM.set_use_hook_mlp_in`.
        vision_encoder: The same sizes for the vision encoder (`n_ctx` counts its patches, class
            token included, or is 0 where that depends on the image).
        audio_encoder: The same sizes for the audio encoder.
    """

    model_name: str = ""
    architecture: str = ""
    image_token_id: int | None = None
    video_token_id: int | None = None
    audio_token_id: int | None = None
    d_vocab_out: int = -1
    is_encoder_decoder: bool = False
    use_attn_in: bool = False
    use_hook_mlp_in: bool = False
    vision_encoder: TransformerLensConfig | None = None
    audio_encoder: TransformerLensConfig | None = None


def build_config(
    hf_model: nn.Module, architecture: Architecture, stacks: dict[str, HookedStack]
) -> HookedVLMConfig:
    """Read the sizes off a Hugging Face model and its configuration.

    Args:
        hf_model: The model.
        architecture: Its record.
        stacks: Its stacks of blocks by name, the language model's under "" or "decoder".
    """
    hf_config: Any = hf_model.config
    weight = next(hf_model.parameters())
    if architecture.embed is not None:
        weight = beneath(Place(hf_model, architecture.embed).module).weight
    sizes = {
        name: _stack_sizes(hf_model, paths, stacks[name], weight)
        for name, paths in architecture.parts().items()
        if name in stacks
    }
    towers: dict[str, Any] = {
        name: TransformerLensConfig(**sizes[name], default_prepend_bos=False)
        for name in ("vision_encoder", "audio_encoder")
        if name in sizes
    }
    [main] = [name for name in ("decoder", "") if name in sizes] or list(towers)
    return HookedVLMConfig(
        **sizes[main],
        **_words(hf_model, architecture, weight),
        positional_embedding_type=_positions(stacks[main]),
        model_name=hf_config._name_or_path,
        architecture=type(hf_model).__name__,
        image_token_id=getattr(hf_config, "image_token_id", None),
        video_token_id=getattr(hf_config, "video_token_id", None),
        audio_token_id=getattr(hf_config, "audio_token_id", None),
        is_encoder_decoder=main == "decoder",
        **towers,
    )


def _words(hf_model: nn.Module, architecture: Architecture, weight: torch.Tensor) -> dict[str, int]:
    """How many tokens the model embeds and predicts; nothing of a model without text."""
    if architecture.unembed is None:
        return {}
    predicted = beneath(Place(hf_model, architecture.unembed).module).out_features
    return {"d_vocab": weight.shape[0], "d_vocab_out": predicted}


def _positions(stack: HookedStack) -> str:
    if hasattr(stack.blocks[0], "attn") and hasattr(stack.blocks[0].attn, "hook_rot_q"):
        return "rotary"
    if any("relative_attention_bias" in name for name, _ in stack.hf_block.named_modules()):
        return "relative_positional_bias"
    return "alibi" if stack.blocks[0].attn.alibi else "standard"


def _stack_sizes(
    hf_model: Any, paths: StackPaths, stack: HookedStack, weight: torch.Tensor
) -> dict[str, Any]:
    config, block = config_at(hf_model.config, paths.config), stack.blocks[0]
    d_model, n_heads = stack.d_model, size_in(config, "n_heads") or 1
    rms = not block.ln1.centers
    return {
        "d_model": d_model,
        "d_head": size_in(config, "d_head") or d_model // n_heads,
        "n_heads": n_heads,
        "n_key_value_heads": size_in(config, "n_key_value_heads"),
        "n_layers": len(stack.blocks),
        "n_ctx": _context_length(config),
        "d_mlp": block.mlp.d_mlp,
        "gated_mlp": block.mlp.gated,
        "act_fn": _activation(config),
        "uses_rms_norm": rms,
        "normalization_type": "RMS" if rms else "LN",
        "eps": block.ln1.eps,
        "dtype": weight.dtype,
        "device": input_device(hf_model, weight),
    }


def follow(
    cfg: HookedVLMConfig, hf_model: nn.Module, weight: Any, d_vocab_out: int | None = None
) -> None:
    """Bring what can change in a living model up to date: dtype, device and vocabulary.

    Args:
        cfg: The configuration of the wrapped model.
        hf_model: The model.
        weight: Its token embedding, or of a model without text any weight.
        d_vocab_out: How many tokens its head predicts, if it has one.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> _ = model.hf_model.to(torch.bfloat16)
        >>> model.cfg.dtype
        torch.bfloat16
    """
    if not isinstance(weight, torch.Tensor):  # packed by torch's own quantisation
        return
    device = input_device(hf_model, weight)
    for part in (cfg, cfg.vision_encoder, cfg.audio_encoder):
        if part is not None:
            part.dtype, part.device = weight.dtype, device
    if d_vocab_out is not None:
        cfg.d_vocab, cfg.d_vocab_out = weight.shape[0], d_vocab_out


def input_device(hf_model: Any, weight: torch.Tensor) -> str:
    """Where a model's inputs go: to its token embedding, and if that is offloaded to its device.

    Args:
        hf_model: The model; `hf_device_map` says where accelerate put its parts.
        weight: Its token embedding, or another weight.

    Example:
        >>> input_device(nn.Linear(2, 2), torch.zeros(2, 2))
        'cpu'
    """
    device_map = vars(hf_model).get("hf_device_map")
    if device_map is None or not weight.is_meta:
        return str(weight.device)
    devices = [device for device in device_map.values() if device not in _STORES]
    return str(torch.device(devices[0])) if devices else "cpu"


_STORES = ("cpu", "disk")
"""Where a device map offloads parts to; they come to the model's device for their forward."""


_UNNAMED = {"bloom": "gelu_fast"}
"""Activations that a family's code chooses and no configuration names, as TransformerLens does."""


def _activation(config: Any) -> str:
    """The name of the activation, whatever the family calls it."""
    names = ("hidden_act", "hidden_activation", "activation_function", "dense_act_fn")
    stated = [getattr(config, name) for name in names if getattr(config, name, None)]
    return stated[0] if stated else _UNNAMED[config.model_type]


def _context_length(config: Any) -> int:
    """Positions of a text model, patches of a vision model; 0 where there is no fixed number."""
    for name in ("max_position_embeddings", "max_source_positions"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    sizes = getattr(config, "image_size", 0), getattr(config, "patch_size", 1)
    image, patch = (size if isinstance(size, int) else size[0] for size in sizes)
    return (image // patch) ** 2 + _class_tokens(config) if image else 0


def _class_tokens(config: Any) -> int:
    """How many positions a vision model has besides those of its patches."""
    if config.model_type.startswith("siglip"):
        return 0
    return 1 + getattr(config, "num_register_tokens", 0)

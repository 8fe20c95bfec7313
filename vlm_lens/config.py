"""The configuration of a HookedVLM, under TransformerLens' names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformer_lens.config import TransformerLensConfig

from vlm_lens.architectures import Architecture, StackPaths
from vlm_lens.architectures.base import module_at


@dataclass
class HookedVLMConfig(TransformerLensConfig):
    """Sizes of the language model, as TransformerLens' tools expect them, and of the encoder.

    Attributes:
        model_name: Where the model was loaded from.
        architecture: Name of the Hugging Face class.
        image_token_id: Id of the token that stands for one image position.
        vision_encoder: The same sizes for the vision encoder (`n_ctx` counts its patches,
            class token included).
    """

    model_name: str = ""
    architecture: str = ""
    image_token_id: int | None = None
    vision_encoder: TransformerLensConfig | None = None


def build_config(hf_model: nn.Module, architecture: Architecture) -> HookedVLMConfig:
    """Read the sizes off a Hugging Face model and its configuration."""
    hf_config: Any = hf_model.config
    embed = module_at(hf_model, architecture.embed)
    text = _stack_sizes(hf_model, architecture.language_model, embed.weight)
    vision = _stack_sizes(hf_model, architecture.vision_encoder, embed.weight)
    return HookedVLMConfig(
        **text,
        d_vocab=embed.weight.shape[0],
        positional_embedding_type="rotary",
        model_name=hf_config._name_or_path,
        architecture=type(hf_model).__name__,
        image_token_id=hf_config.image_token_id,
        vision_encoder=TransformerLensConfig(**vision, default_prepend_bos=False),
    )


def _stack_sizes(hf_model: nn.Module, paths: StackPaths, weight: torch.Tensor) -> dict[str, Any]:
    config = getattr(hf_model.config, paths.config)
    n_heads = config.num_attention_heads
    norm = module_at(hf_model, f"{paths.blocks}.0.{paths.block.ln1}")
    rms = not isinstance(norm, nn.LayerNorm)
    return {
        "d_model": config.hidden_size,
        "d_head": getattr(config, "head_dim", None) or config.hidden_size // n_heads,
        "n_heads": n_heads,
        "n_key_value_heads": getattr(config, "num_key_value_heads", None),
        "n_layers": config.num_hidden_layers,
        "n_ctx": _context_length(config),
        "d_mlp": config.intermediate_size,
        "gated_mlp": paths.block.gate is not None,
        "act_fn": config.hidden_act,
        "uses_rms_norm": rms,
        "normalization_type": "RMS" if rms else "LN",
        "eps": getattr(config, "rms_norm_eps", None) or getattr(config, "layer_norm_eps", 1e-5),
        "dtype": weight.dtype,
        "device": str(weight.device),
    }


def _context_length(config: Any) -> int:
    """Positions of a text model; patches of a vision model."""
    if hasattr(config, "max_position_embeddings"):
        return config.max_position_embeddings
    return (config.image_size // config.patch_size) ** 2 + 1

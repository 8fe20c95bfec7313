"""The tensors of a model's forward that have an entry per position, and how they grow."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin

# Besides input_ids. Each is 0 at padding.
PER_POSITION = (
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "image_embeds_position_mask",
    "cross_attention_mask",
    "position_ids",
)


def lengthen(
    name: str, value: Shaped[Tensor, "batch pos *rest"], n: int, *, answer_type: int
) -> Shaped[Tensor, "batch pos_total *rest"]:
    """Returns a tensor per position with answers behind the prompts, as ``generate`` grows it.

    Args:
        name: Its name, one of `PER_POSITION`.
        value: The tensor.
        n: The length of the answers.
        answer_type: What ``token_type_ids`` are at an answer.

    Example:
        >>> lengthen("attention_mask", torch.tensor([[0, 1]]), 2, answer_type=0)
        tensor([[0, 1, 1, 1]])
    """
    if name == "cross_attention_mask":  # an answer sees the images that the prompt's end sees
        return torch.cat([value, value[:, -1:].expand(-1, n, *value.shape[2:])], dim=1)
    if name == "position_ids":
        return torch.cat([value, value[:, -1:] + 1 + torch.arange(n, device=value.device)], dim=1)
    fill = {"attention_mask": 1, "token_type_ids": answer_type}.get(name, 0)
    return torch.cat([value, value.new_full((len(value), n), fill)], dim=1)


def positions_in_text(mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """The number of each position in its text, padding not counted, as `generate` counts them.

    Args:
        mask: 1 at real positions, 0 at padding.

    Example:
        >>> positions_in_text(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).tolist()
        [[0, 0, 0, 1], [0, 1, 2, 3]]
    """
    return (mask.long().cumsum(1) - 1).masked_fill(mask == 0, 0)


def pad_left(
    value: Shaped[Tensor, "batch pos *rest"], length: int
) -> Shaped[Tensor, "batch pos_total *rest"]:
    """Returns a tensor per position with zeros in front, up to a length."""
    return F.pad(value, (0, 0) * (value.ndim - 2) + (length - value.shape[1], 0))


def stack(parts: list[Tensor], *, fill: int = 0) -> Tensor:
    """Joins tensors along their first axis; the other axes are filled up at their ends.

    Args:
        parts: Tensors with the same number of axes.
        fill: What to fill up with.

    Example:
        >>> stack([torch.ones(1, 2), torch.ones(1, 3)]).tolist()
        [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    longest = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    filled = []
    for part in parts:
        missing = [longest[axis] - part.shape[axis] for axis in range(1, part.ndim)]
        padding = [n for amount in reversed(missing) for n in (0, amount)]
        filled.append(F.pad(part, padding, value=fill))
    return torch.cat(filled)


def ends_of(hf_model: nn.Module, options: Mapping[str, Any] | None = None) -> list[int]:
    """The tokens at which a model's own `generate` ends an answer.

    Args:
        hf_model: The model.
        options: What `generate` was told besides.
    """
    # BLIP and Kosmos-2 hand generation to their language model, which has its own settings.
    *_, generating = (m for m in hf_model.modules() if isinstance(m, GenerationMixin))
    options = options or {}
    config: Any = options.get("generation_config") or generating.generation_config
    ends = options.get("eos_token_id", config.eos_token_id)
    return [] if ends is None else torch.as_tensor(ends).reshape(-1).tolist()


def is_answer(
    tokens: Int[Tensor, "batch pos"], n_prompt: int, ends: list[int]
) -> Bool[Tensor, "batch pos"]:
    """The positions of generated answers, the token that ends them included.

    Args:
        tokens: What `generate` returned.
        n_prompt: How many positions come before the answers.
        ends: The tokens that end an answer.

    Example:
        >>> is_answer(torch.tensor([[7, 5, 2, 0], [7, 5, 5, 2]]), 1, [2]).long().tolist()
        [[0, 1, 1, 0], [0, 1, 1, 1]]
    """
    is_end = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
    is_end[:, :n_prompt] = False
    found = is_end.cumsum(1) - is_end.long() == 0
    found[:, :n_prompt] = False
    return found

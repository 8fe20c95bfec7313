"""The tensors of a model's forward that have an entry per position, and how they grow."""

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

# Besides input_ids. Each is 0 at padding.
PER_POSITION = (
    "attention_mask",
    "token_type_ids",
    "mm_token_type_ids",
    "image_embeds_position_mask",
    "cross_attention_mask",
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
    fill = {"attention_mask": 1, "token_type_ids": answer_type}.get(name, 0)
    return torch.cat([value, value.new_full((len(value), n), fill)], dim=1)


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

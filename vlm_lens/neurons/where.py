"""The positions that an edit touches, in whatever piece of the sequence comes by."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from vlm_lens.hooks.step import Step
from vlm_lens.neurons.checks import kind_of

Where = Bool[Tensor, "batch pos"] | Bool[Tensor, " pos"] | None
"""The positions to edit, True = edit; None = all."""


def check_where(where: object, generated: bool) -> None:
    """Refuse what is no mask.

    Raises:
        TypeError: It is none.
        ValueError: It is needed and absent.
    """
    if where is None and not generated:
        raise ValueError(
            "generated=False needs where: without it the prompt cannot be told from a generated "
            "position. Pass where=torch.ones(batch, pos, dtype=torch.bool) to edit the prompt only."
        )
    if where is not None and not (isinstance(where, Tensor) and where.dtype == torch.bool):
        raise TypeError(
            f"where must be a boolean tensor [batch, pos], got {kind_of(where)}. Pass a mask such "
            'as inputs.positions_mask("image"), or tensor.bool().'
        )


def mask_of(
    where: Bool[Tensor, "*batch pos"],
    generated: bool,
    shape: torch.Size,
    step: Step | None = None,
    *,
    name: str = "",
) -> Bool[Tensor, "*batch_now pos_now"]:
    """The part of a mask that belongs to activations of a shape.

    Args:
        where: The mask of the prompt.
        generated: Whether positions after the prompt are touched.
        shape: The batch and position dimensions of the activations.
        step: Which positions of the sequence they are; None where that is not known.
        name: The hook point.

    Raises:
        ValueError: The mask is of another prompt.

    Example:
        >>> where = torch.tensor([[True, False]])
        >>> mask_of(where, True, torch.Size([1, 2]))
        tensor([[ True, False]])
        >>> mask_of(where, True, torch.Size([1, 1]))  # a position after the prompt
        tensor([[True]])
    """
    if len(shape) == 1 and where.ndim == 2 and where.shape[0] == 1:
        where = where[0]  # [pos, d] activations are those of a batch of one
    in_encoder = name.startswith(_ENCODERS)
    mask = _for_rows(where, shape, step, in_encoder)
    n, n_prompt = shape[-1], where.shape[-1]
    start = _start(n, n_prompt, step, in_encoder)
    if mask is None or start is None:
        raise _misfit(where, shape, step, name)
    after = mask.new_full((*mask.shape[:-1], n), generated)
    return torch.cat([mask, after], dim=-1)[..., min(start, n_prompt) :][..., :n]


# All of their positions come in one piece, however the language model goes on.
_ENCODERS = ("vision_encoder.", "audio_encoder.", "qformer.", "projector.", "encoder.")


def _for_rows(
    where: Tensor, shape: torch.Size, step: Step | None, in_encoder: bool
) -> Tensor | None:
    """Each row as often as its prompt has sequences; None where the rows do not fit."""
    if where.shape[:-1] == shape[:-1]:
        return where
    generating = step is not None and step.prompt is not None
    if not generating or len(shape) != where.ndim or not len(where) or shape[0] % len(where):
        return None
    if in_encoder and (where != where[:1]).any():
        return None  # the images of one prompt may follow each other, or those of its sequences
    return where.repeat_interleave(shape[0] // len(where), dim=0)


def _start(n: int, n_prompt: int, step: Step | None, in_encoder: bool) -> int | None:
    """Where the positions start; None where the mask is not of this prompt."""
    if in_encoder:
        return 0 if n == n_prompt else None
    if step is None:
        return 0 if n == n_prompt else n_prompt if n == 1 else None
    if step.guided:
        return None
    if n == n_prompt and step.past == 0:
        return 0
    if step.prompt is None:  # a forward of the user's own, with a key-value cache
        return step.past if step.past >= n_prompt else None
    whole = step.past + n >= n_prompt or step.chunked
    return step.past if step.prompt == n_prompt and whole else None


def _misfit(where: Tensor, shape: torch.Size, step: Step | None, name: str) -> ValueError:
    if step is not None and step.guided:
        return ValueError(
            f"where is a mask of one prompt, but guidance runs a second one through {name!r}: "
            "leave guidance_scale out, or write a hook function."
        )
    return ValueError(
        f"where has shape {tuple(where.shape)} but the activations at {name!r} have shape "
        f"{(*shape, 'd')}: expected {(*where.shape, 'd')} for the whole prompt, or what "
        "model.generate makes of it. Build where for this component and batch."
    )

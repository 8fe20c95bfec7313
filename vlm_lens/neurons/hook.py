"""The hook function that edits single neurons at one hook point while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.neurons.checks import check_range, kind_of

Edit = Callable[[Float[Tensor, "*positions k"]], Float[Tensor, "*positions k"]]
"""Maps the activations of the ``k`` chosen neurons to their new values, shape and dtype kept."""

Where = Bool[Tensor, "batch pos"] | Bool[Tensor, " pos"] | None
"""The positions to edit, True = edit; None = all."""


def kept_on_devices(tensor: Tensor) -> Callable[..., Tensor]:
    """The tensor as ``constant(device, dtype)``, copied to each device and dtype only once."""
    # A copy made in inference mode could never be used in a forward pass with gradients.
    with torch.inference_mode(False):
        source = tensor.detach().clone()

    @cache
    def constant(device: torch.device, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode(False):
            return source.to(device, dtype)

    return constant


class NeuronHook:
    """A TransformerLens hook function ``fn(tensor, hook)`` that edits neurons of one hook point.

    Args:
        name: The hook point's name, for messages.
        indices: The neurons to edit, unique.
        edit: What becomes of them.
        size: The number of neurons at the hook point (None = unknown, not checked).
        where: The positions to edit.
        generated: Whether positions that come one at a time after the prompt are edited too.

    Example:
        >>> hook = NeuronHook("projector.mlp.hook_post", [1], lambda old: 2 * old)
        >>> hook(torch.ones(1, 2, 3), hook=None)
        tensor([[[1., 2., 1.],
                 [1., 2., 1.]]])
    """

    def __init__(
        self,
        name: str,
        indices: Sequence[int],
        edit: Edit,
        *,
        size: int | None = None,
        where: Where = None,
        generated: bool = True,
    ) -> None:
        _check_where(where, generated)
        self.name, self._size, self._edit, self._generated = name, size, edit, generated
        self._count, self._largest = len(indices), max(indices)
        self._index = kept_on_devices(torch.tensor(indices))
        self._where = None if where is None else kept_on_devices(where)
        self._where_shape = [] if where is None else list(where.shape)

    def __call__(
        self,
        tensor: Float[Tensor, "*shape"],
        hook: HookPoint | None = None,  # noqa: ARG002 - TransformerLens passes it by keyword
    ) -> Float[Tensor, "*shape"]:
        """Returns ``tensor`` (``[batch, pos, d]`` or ``[pos, d]``) with the neurons edited."""
        self._check_neurons(tensor)
        where = self._where
        if where is not None and not self._is_prompt(tensor, self._where_shape):
            if not self._generated:
                return tensor
            where = None
        index = self._index(tensor.device, torch.long)
        old = tensor[..., index]
        new = self._edit(old)
        if where is not None:
            mask = where(tensor.device, torch.bool).reshape(*tensor.shape[:-1], 1)
            new = torch.where(mask, new, old)
        return tensor.index_copy(-1, index, new)

    def __repr__(self) -> str:
        return f"NeuronHook({self._count} neurons of {self.name})"

    def _check_neurons(self, tensor: Tensor) -> None:
        shape = tuple(tensor.shape)
        if tensor.ndim not in (2, 3):
            raise ValueError(
                f"activations at {self.name!r} have shape {shape}: neurons are edited in "
                "[batch, pos, d] or [pos, d] activations, not in head-shaped ones "
                "[batch, pos, head, d_head]. Use a site with one neuron dimension, such as "
                "'mlp.hook_post' or 'hook_attn_out'."
            )
        check_range({self.name: [self._largest]}, {self.name: shape[-1]})
        if self._size not in (None, shape[-1]):
            raise ValueError(
                f"the neurons of {self.name!r} (or their reference activations) belong to a hook "
                f"point with {self._size} neurons, but the activations have shape {shape}. They "
                "come from another model: rebuild them with this one."
            )

    def _is_prompt(self, tensor: Tensor, where: list[int]) -> bool:
        """Whether a mask of shape ``where`` covers the tensor, or else it is a later position."""
        shape = list(tensor.shape[:-1])
        if len(shape) == 1 and where[:-1] == [1]:
            where = where[1:]  # [pos, d] activations are those of a batch of one
        if shape == where:
            return True
        if shape == [*where[:-1], 1]:
            return False
        raise ValueError(
            f"where has shape {tuple(where)} but the activations at {self.name!r} have shape "
            f"{tuple(tensor.shape)}: expected {(*where, 'd')} for the whole prompt or, while "
            f"generating with a key-value cache, {(*where[:-1], 1, 'd')} for one new position. "
            "Build where for this component and batch, and generate with use_cache=True."
        )


def _check_where(where: object, generated: bool) -> None:
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

"""The hook function that edits single neurons at one hook point while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.hooks.heads import HEAD_SITES, PATTERN_SITES, flat_heads
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

    Activations are ``[batch, pos, d]`` or ``[pos, d]``, and at the sites of heads (`HEAD_SITES`)
    ``[batch, pos, head, d_head]``, where neuron ``h * d_head + i`` is channel ``i`` of head ``h``.

    Args:
        name: The hook point's name.
        indices: The neurons to edit, unique.
        edit: What becomes of them.
        size: The number of neurons at the hook point (None = unknown, not checked).
        where: The positions to edit.
        generated: Whether positions that come one at a time after the prompt are edited too.

    Raises:
        ValueError: The hook point has no neurons (attention scores and patterns), or ``where`` is
            needed; TypeError: ``where`` is no mask.

    Example:
        >>> hook = NeuronHook("projector.mlp.hook_post", [1], lambda old: 2 * old)
        >>> hook(torch.ones(1, 2, 3), hook=None)
        tensor([[[1., 2., 1.],
                 [1., 2., 1.]]])
        >>> hook = NeuronHook("blocks.0.attn.hook_v", [2], lambda old: 2 * old)
        >>> hook(torch.ones(1, 1, 2, 2), hook=None)
        tensor([[[[1., 1.],
                  [2., 1.]]]])
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
        _check_has_neurons(name)
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
        """Returns ``tensor`` (in one of the shapes above) with the neurons edited."""
        self._check_shape(tensor)
        flat = flat_heads(self.name, tensor)
        self._check_neurons(flat)
        where = self._where
        if where is not None and not self._is_prompt(flat, self._where_shape):
            if not self._generated:
                return tensor
            where = None
        index = self._index(flat.device, torch.long)
        old = flat[..., index]
        new = self._edit(old)
        if where is not None:
            mask = where(flat.device, torch.bool).reshape(*flat.shape[:-1], 1)
            new = torch.where(mask, new, old)
        return flat.index_copy(-1, index, new).view(tensor.shape)

    def __repr__(self) -> str:
        return f"NeuronHook({self._count} neurons of {self.name})"

    def _check_shape(self, tensor: Tensor) -> None:
        has_heads = self.name.endswith(HEAD_SITES)
        if tensor.ndim in ((4,) if has_heads else (2, 3)):
            return
        expected = "[batch, pos, head, d_head]" if has_heads else "[batch, pos, d] or [pos, d]"
        raise ValueError(
            f"activations at {self.name!r} have shape {tuple(tensor.shape)}, but neurons are "
            f"edited there in activations {expected}. Heads are expected at the sites "
            f"{', '.join(HEAD_SITES)} only; for another hook point write a hook function."
        )

    def _check_neurons(self, tensor: Tensor) -> None:
        shape = tuple(tensor.shape)
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


def _check_has_neurons(name: str) -> None:
    if name.endswith(PATTERN_SITES):
        raise ValueError(
            f"{name!r} has no neurons: attention scores and patterns are [batch, head, query, "
            "key], so that their last dimension is positions. Choose neurons of 'attn.hook_q', "
            "'attn.hook_k', 'attn.hook_v' or 'attn.hook_z', or write a hook function."
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

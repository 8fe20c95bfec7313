"""The hook function that edits single neurons at one hook point while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.hooks.heads import HEAD_SITES, PATTERN_SITES, flat_heads
from vlm_lens.neurons.checks import check_range
from vlm_lens.neurons.where import Where, check_where, mask_of

Edit = Callable[[Float[Tensor, "*positions k"]], Float[Tensor, "*positions k"]]
"""Maps the activations of the ``k`` chosen neurons to their new values, shape and dtype kept."""


def kept_on_devices(tensor: Tensor) -> Callable[..., Tensor]:
    """The tensor as ``constant(device, dtype)``, copied to each device and dtype only once."""
    # A copy made in inference mode could never be used in a forward pass with gradients.
    with torch.inference_mode(False):
        return cache(partial(_moved, tensor.detach().clone()))


def _moved(source: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return source.to(device, dtype)


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
        check_where(where, generated)
        self.name, self._size, self._edit, self._generated = name, size, edit, generated
        self._count, self._largest = len(indices), max(indices)
        self._index = kept_on_devices(torch.tensor(indices))
        self._where = None if where is None else kept_on_devices(where)

    def __call__(
        self,
        tensor: Float[Tensor, "*shape"],
        hook: HookPoint | None = None,
    ) -> Float[Tensor, "*shape"]:
        """Returns ``tensor`` (in one of the shapes above) with the neurons edited."""
        self._check_shape(tensor)
        flat = flat_heads(self.name, tensor)
        self._check_neurons(flat)
        index = self._index(flat.device, torch.long)
        old = flat[..., index]
        new = self._edit(old)
        if self._where is not None:
            where = self._where(flat.device, torch.bool)
            step = getattr(hook, "step", None)
            mask = mask_of(where, self._generated, flat.shape[:-1], step, name=self.name)
            new = torch.where(mask[..., None], new, old)
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


def _check_has_neurons(name: str) -> None:
    if name.endswith(PATTERN_SITES):
        raise ValueError(
            f"{name!r} has no neurons: attention scores and patterns are [batch, head, query, "
            "key], so that their last dimension is positions. Choose neurons of 'attn.hook_q', "
            "'attn.hook_k', 'attn.hook_v' or 'attn.hook_z', or write a hook function."
        )

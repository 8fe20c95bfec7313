"""Hook functions that edit single neurons while a model runs.

A :class:`NeuronHook` overwrites chosen neurons (entries of the last dimension) of the activations
at one hook point and leaves all others, and the tensor it was given, as they were.
:class:`vlm_lens.neurons.NeuronSet` builds them; they go to TransformerLens as ``fwd_hooks``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.hooks.names import HookNameError

Edit = Callable[[Float[Tensor, "*positions k"]], Float[Tensor, "*positions k"]]
"""Maps the activations of the ``k`` chosen neurons to their new values, shape and dtype kept."""

ForwardHooks = list[tuple[str | Callable, Callable]]
"""(hook name, hook function) pairs, typed as TransformerLens' ``fwd_hooks``."""


@runtime_checkable
class ActivationLookup(Protocol):
    """Activations by hook name: a dict of tensors or a TransformerLens ``ActivationCache``."""

    def __getitem__(self, name: str, /) -> Tensor: ...


class PerDevice:
    """A constant tensor that is copied to each device (and dtype) it is asked for only once."""

    def __init__(self, tensor: Tensor) -> None:
        self._source = self._copy(tensor, tensor.device, tensor.dtype)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """The constant on ``device``, in ``dtype`` (None keeps its own). Not to be modified."""
        key = (device, dtype or self._source.dtype)
        if key not in self._copies:
            self._copies[key] = self._copy(self._source, *key)
        return self._copies[key]

    @staticmethod
    def _copy(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        # A copy made in inference mode could never be used in a forward pass with gradients.
        with torch.inference_mode(False):
            return tensor.detach().to(device, dtype, copy=True)


class NeuronHook:
    """A TransformerLens hook function ``fn(tensor, hook)`` that edits neurons of one hook point.

    The tensor it is given is never modified: the edited copy has the same dtype and device, and
    gradients flow through everything that was not overwritten.

    Args:
        name: the hook point's name, for messages.
        indices: the neurons to edit, unique.
        edit: maps their activations ``[..., k]`` to the new ones.
        label: what the edit does, for ``repr``.
        size: the number of neurons at the hook point (None = unknown, not checked).
        where: the positions to edit, ``[batch, pos]`` or ``[pos]``. None = all.
        generated: whether positions that come one at a time after the prompt are edited too.

    Raises:
        TypeError: if ``where`` is not a boolean tensor.
        ValueError: if ``where`` has neither one nor two dimensions, or if ``generated`` is False
            without ``where`` (the prompt could not be told from a generated position).

    Example:
        >>> import torch
        >>> hook = NeuronHook("projector.mlp.hook_post", [1], lambda x: 2 * x, label="double")
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
        label: str,
        size: int | None = None,
        where: Bool[Tensor, "batch pos"] | Bool[Tensor, " pos"] | None = None,
        generated: bool = True,
    ) -> None:
        _check_where(where, generated)
        self.name = name
        self.label = label
        self._count = len(indices)
        self._largest = max(indices)
        self._index = PerDevice(torch.tensor(list(indices), dtype=torch.long))
        self._edit = edit
        self._size = size
        self._where = None if where is None else PerDevice(where)
        self._where_shape: list[int] = [] if where is None else list(where.shape)
        self._generated = generated

    def __call__(
        self,
        tensor: Float[Tensor, "*shape"],
        hook: HookPoint | None = None,  # noqa: ARG002 - TransformerLens passes it by keyword
    ) -> Float[Tensor, "*shape"]:
        """Returns ``tensor`` (``[batch, pos, d]`` or ``[pos, d]``) with the neurons edited.

        Raises:
            IndexError: if a neuron is beyond the last dimension.
            ValueError: if the activations are head-shaped, have another number of neurons than
                the set was made for, or do not fit ``where``.
        """
        self._check_neurons(tensor)
        prompt = self._where is None or self._is_prompt(tensor)
        if not prompt and not self._generated:
            return tensor
        index = self._index.on(tensor.device)
        old = tensor[..., index]
        new = self._edit(old)
        if self._where is not None and prompt:
            mask = self._where.on(tensor.device).reshape(tensor.shape[:-1])
            new = torch.where(mask[..., None], new, old)
        return tensor.index_copy(-1, index, new)

    def __repr__(self) -> str:
        noun = "neuron" if self._count == 1 else "neurons"
        return f"NeuronHook({self.label}: {self._count} {noun} of {self.name})"

    def _check_neurons(self, tensor: Tensor) -> None:
        shape = tuple(tensor.shape)
        if tensor.ndim not in (2, 3):
            raise ValueError(
                f"activations at {self.name!r} have shape {shape}: neurons are edited in "
                "[batch, pos, d] or [pos, d] activations, not in head-shaped ones "
                "[batch, pos, head, d_head]. Use a site with one neuron dimension, such as "
                "'mlp.hook_post' or 'hook_attn_out'."
            )
        if self._largest >= shape[-1]:
            raise neuron_range_error(self.name, self._largest, shape[-1])
        if self._size is not None and self._size != shape[-1]:
            raise ValueError(
                f"the neurons of {self.name!r} (or their reference activations) belong to a hook "
                f"point with {self._size} neurons, but the activations have shape {shape}. They "
                "come from another model: rebuild them with this one."
            )

    def _is_prompt(self, tensor: Tensor) -> bool:
        """Whether ``where`` covers the tensor: True, or False for a later single position."""
        where, shape = self._where_shape, list(tensor.shape[:-1])
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


def _check_where(where: Tensor | None, generated: bool) -> None:
    if where is None:
        if not generated:
            raise ValueError(
                "generated=False needs where: without it the prompt cannot be told from a "
                "generated position. Pass where=torch.ones(batch, pos, dtype=torch.bool) to edit "
                "the whole prompt only."
            )
        return
    if not isinstance(where, Tensor) or where.dtype != torch.bool:
        got = where.dtype if isinstance(where, Tensor) else type(where).__name__
        raise TypeError(
            f"where must be a boolean tensor [batch, pos], got {got}. Pass a mask such as "
            'inputs.positions_mask("image"), or tensor.bool().'
        )
    if where.ndim not in (1, 2):
        raise ValueError(
            f"where must have shape [batch, pos] or [pos], got {tuple(where.shape)}. Leave out "
            "the neuron dimension: the set says which neurons."
        )


def neuron_range_error(name: str, index: int, size: int) -> IndexError:
    """The error for a neuron that does not exist at a hook point of ``size`` neurons."""
    return IndexError(
        f"neuron {name}[{index}] does not exist: {name!r} has {size} neurons, so valid indices "
        f"are 0 to {size - 1}. Check that the neurons come from this model and this site."
    )


def replacing(values: Float[Tensor, " k"] | Float[Tensor, ""]) -> Edit:
    """An edit that overwrites: one value for each of the ``k`` neurons, or one for all."""
    constant = PerDevice(values)

    def edit(old: Float[Tensor, "*positions k"]) -> Float[Tensor, "*positions k"]:
        return constant.on(old.device, old.dtype).expand_as(old)

    return edit


def scaling(factor: int | float) -> Edit:
    """An edit that multiplies by ``factor``. Raises ValueError unless it is a finite number."""
    number = finite_number("factor", factor)
    return lambda old: old * number


def clamping(minimum: int | float | None, maximum: int | float | None) -> Edit:
    """An edit that limits to ``[minimum, maximum]``; None = no limit on that side.

    Raises:
        ValueError: if both are None, one is not a finite number, or minimum > maximum.
    """
    if minimum is None and maximum is None:
        raise ValueError("clamp needs a limit, got none. Pass minimum, maximum or both.")
    low = None if minimum is None else finite_number("minimum", minimum)
    high = None if maximum is None else finite_number("maximum", maximum)
    if low is not None and high is not None and low > high:
        raise ValueError(
            f"clamp needs minimum <= maximum, got minimum={low} and maximum={high}. Swap them?"
        )
    return lambda old: old.clamp(low, high)


def finite_number(what: str, value: object) -> float:
    """``value`` as a float; ValueError, naming ``what``, unless it is a finite number."""
    if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{what} must be a finite number, got {value!r}.")
    return float(value)


def reference_values(
    name: str,
    indices: Sequence[int],
    reference: ActivationLookup | None,
    statistic: Literal["mean", "min"],
) -> tuple[Float[Tensor, " k"], int]:
    """Each neuron's mean or minimum over all reference activations of its hook point.

    Args:
        name: the hook point.
        indices: the ``k`` neurons.
        reference: activations ``[..., d]`` by hook name.
        statistic: "mean" or "min", over every dimension but the last.

    Returns:
        The values in at least float32, and ``d``, the number of neurons at the hook point.

    Raises:
        ValueError: if there is no reference, or it is empty or has NaN for a chosen neuron.
        HookNameError: if the reference lacks the hook point.
        IndexError: if it has too few neurons.

    Example:
        >>> import torch
        >>> reference_values("projector.mlp.hook_post", [1], {
        ...     "projector.mlp.hook_post": torch.tensor([[1.0, 2.0], [3.0, 6.0]])}, "mean")
        (tensor([4.]), 2)
    """
    activations = _reference_activations(name, reference, statistic)
    size = activations.shape[-1]
    if max(indices) >= size:
        raise neuron_range_error(name, max(indices), size)
    chosen = activations.detach()[..., list(indices)].reshape(-1, len(indices))
    if chosen.shape[0] == 0:
        raise ValueError(
            f"the reference for {name!r} is empty (shape {tuple(activations.shape)}). Pass the "
            "activations of at least one position."
        )
    # Half precision would lose digits in a mean over thousands of positions.
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    values = chosen.mean(0) if statistic == "mean" else chosen.amin(0)
    if values.isnan().any():
        worst = indices[int(values.isnan().nonzero()[0, 0])]
        raise ValueError(
            f"the reference activations of {name}[{worst}] contain NaN, so it has no {statistic}. "
            "Record the reference again without overflowing or padded positions."
        )
    return values, size


def _reference_activations(
    name: str, reference: ActivationLookup | None, statistic: str
) -> Shaped[Tensor, "... d"]:
    advice = (
        "Pass reference=cache, where cache maps hook names to activations [..., d], such as the "
        "ActivationCache of model.run_with_cache(...) on reference inputs."
    )
    if reference is None:
        raise ValueError(f"ablate({statistic!r}) needs reference activations, got none. {advice}")
    try:
        return reference[name]
    except (KeyError, HookNameError) as error:
        raise HookNameError(f"the reference has no activations for {name!r}. {advice}") from error

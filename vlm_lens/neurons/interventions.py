"""Interventions on neurons: ablating, scaling and clamping them, as hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from transformer_lens import ActivationCache

from vlm_lens import cache as caches
from vlm_lens.hooks.heads import flat_heads
from vlm_lens.neurons.checks import finite_number
from vlm_lens.neurons.hook import Edit, NeuronHook, kept_on_devices
from vlm_lens.neurons.where import Where

ForwardHooks = list[tuple[str | Callable, Callable]]
"""(hook name, hook function) pairs, typed as TransformerLens' ``fwd_hooks``."""

Reference = Mapping[str, Tensor] | ActivationCache


class Interventions:
    """The part of `NeuronSet` that makes hooks."""

    __slots__ = ()
    _by_name: dict[str, list[int]]
    _sizes: dict[str, int]
    check: Callable[[Mapping[str, int]], None]

    def ablate(
        self,
        value: Literal["zero", "mean", "min"] | int | float = "zero",
        *,
        reference: Reference | None = None,
        where: Where = None,
        generated: bool = True,
    ) -> ForwardHooks:
        """Hooks that replace the neurons' activations by a constant.

        Args:
            value: "zero"; a number; or "mean" or "min", each neuron's own mean or minimum over
                the reference activations.
            reference: For "mean" and "min", activations ``[..., d]`` (or ``[..., head, d_head]``)
                by hook name. Of the cache of `run_with_cache`, the positions count that there are
                (`ActivationCache.real`), of another mapping all of them.
            where: The positions to touch, in the shape of the activations' batch and position
                dimensions (image patches in a vision encoder). None = everywhere.
            generated: Whether positions generated after the prompt are touched as well; False needs
                ``where``. In generation ``where`` covers the prompt: beams and several sequences
                of a prompt share its row, and a chunk of the prompt gets its part.

        Returns:
            (hook name, hook function) pairs for ``fwd_hooks``, one per hook point.

        Raises:
            ValueError, TypeError: A value, ``where`` or the reference is of no use.
            KeyError, IndexError: The reference lacks a hook point or a neuron.

        Example:
            >>> from vlm_lens import NeuronSet
            >>> neurons = NeuronSet.from_indices({"projector.mlp.hook_post": [1]})
            >>> [(name, hook)] = neurons.ablate("zero")
            >>> name, hook(torch.ones(1, 1, 3), hook=None).tolist()
            ('projector.mlp.hook_post', [[[1.0, 0.0, 1.0]]])
        """
        if value in ("mean", "min"):
            return self._ablate_to(str(value), reference, where, generated)
        what = "the value, unless 'zero', 'mean' or 'min',"
        number = 0.0 if value == "zero" else finite_number(what, value)
        return self._same_hooks(replacing(number), where, generated)

    def scale(
        self, factor: int | float, *, where: Where = None, generated: bool = True
    ) -> ForwardHooks:
        """Hooks that multiply the neurons' activations by ``factor``.

        ``where``, ``generated``, the result and what is raised are as for `ablate`.
        """
        return self._same_hooks(scaling(factor), where, generated)

    def clamp(
        self,
        minimum: int | float | None = None,
        maximum: int | float | None = None,
        *,
        where: Where = None,
        generated: bool = True,
    ) -> ForwardHooks:
        """Hooks that limit the neurons' activations to ``[minimum, maximum]``; None = no limit.

        ``where``, ``generated``, the result and what is raised are as for `ablate`.
        """
        return self._same_hooks(clamping(minimum, maximum), where, generated)

    def _ablate_to(
        self, statistic: str, reference: Reference | None, where: Where, generated: bool
    ) -> ForwardHooks:
        if reference is None:
            raise ValueError(
                f"ablate({statistic!r}) needs reference activations, got none. Pass "
                "reference=cache, the cache of model.run_with_cache(...) on reference inputs."
            )
        found = {name: flat_heads(name, _real(reference, name)) for name in self._by_name}
        sizes = {name: activations.shape[-1] for name, activations in found.items()}
        self.check(sizes)
        edits = {
            name: replacing(reference_values(name, indices, found[name], statistic))
            for name, indices in self._by_name.items()
        }
        return hooks(self._by_name, edits, sizes, where, generated)

    def _same_hooks(self, edit: Edit, where: Where, generated: bool) -> ForwardHooks:
        edits = dict.fromkeys(self._by_name, edit)
        return hooks(self._by_name, edits, self._sizes, where, generated)


def _real(reference: Reference, name: str) -> Tensor:
    """What counts of the reference activations at a hook point."""
    if isinstance(reference, caches.ActivationCache):
        return reference.real(name)
    return reference[name]


def hooks(
    neurons: Mapping[str, list[int]],
    edits: Mapping[str, Edit],
    sizes: Mapping[str, int],
    where: Where,
    generated: bool,
) -> ForwardHooks:
    """One hook for each hook point, its neurons, its edit and, if known, its size."""
    hook = partial(NeuronHook, where=where, generated=generated)
    return [
        (name, hook(name, indices, edits[name], size=sizes.get(name)))
        for name, indices in neurons.items()
    ]


def replacing(values: Float[Tensor, " k"] | float) -> Edit:
    """An edit that overwrites: with one value for all, or one for each of the ``k`` neurons."""
    if not isinstance(values, Tensor):
        return lambda old: torch.full_like(old, values)
    constant = kept_on_devices(values)
    return lambda old: constant(old.device, old.dtype).expand_as(old)


def scaling(factor: int | float) -> Edit:
    """An edit that multiplies by ``factor``; ValueError unless it is a finite number."""
    number = finite_number("factor", factor)
    return lambda old: old * number


def clamping(minimum: int | float | None, maximum: int | float | None) -> Edit:
    """An edit that limits to ``[minimum, maximum]``; see `NeuronSet.clamp`."""
    if minimum is None and maximum is None:
        raise ValueError("clamp needs a limit, got none. Pass minimum, maximum or both.")
    low = None if minimum is None else finite_number("minimum", minimum)
    high = None if maximum is None else finite_number("maximum", maximum)
    if low is not None and high is not None and low > high:
        raise ValueError(
            f"clamp needs minimum <= maximum, got minimum={low} and maximum={high}. Swap them?"
        )
    return lambda old: old.clamp(low, high)


def reference_values(
    name: str, indices: list[int], activations: Shaped[Tensor, "... d"], statistic: str
) -> Float[Tensor, " k"]:
    """The mean or minimum, in at least float32, of ``k`` neurons over all other dimensions.

    Raises:
        ValueError: The activations of a chosen neuron are NaN, or there are none.

    Example:
        >>> activations = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> reference_values("projector.mlp.hook_post", [1], activations, "mean")
        tensor([4.])
    """
    chosen = activations.detach()[..., indices].reshape(-1, len(indices))
    # Half precision would lose digits in a mean over thousands of positions.
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    if len(chosen) == 0 or chosen.isnan().any():
        raise ValueError(
            f"the reference activations at {name!r} are empty or NaN for a neuron of the set, so "
            f"it has no {statistic}. Record them again without overflowing or padded positions."
        )
    return chosen.mean(0) if statistic == "mean" else chosen.amin(0)

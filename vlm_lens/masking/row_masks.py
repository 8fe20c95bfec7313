"""Hooks that mask nested sets of neurons, another set in each copy of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.hook import kept_on_devices

Fill = Mapping[str, Float[Tensor, " d"]]
"""By hook name, what each neuron is set to instead of zero."""

Spare = Callable[[str], Bool[Tensor, "batch pos"] | None]
"""The positions of a prompt that are left alone at a hook point; None for none."""


class RowMasks:
    """Masks the best k of a ranking, with several k in one forward.

    The batch is repeated, one copy for each k, one behind the other. The ranking's sets are nested,
    so one rank for each neuron says in which copies it is masked.

    Args:
        ranking: Neurons, best first, whose hook points' sizes are known.
        fill: What masked neurons are set to; zero by default.

    Example:
        >>> ranking = NeuronSet.from_indices(
        ...     {"projector.mlp.hook_post": [2, 0]}, sizes={"projector.mlp.hook_post": 3}
        ... )
        >>> [(name, hook)] = RowMasks(ranking).hooks([1, 2])
        >>> hook(torch.ones(2, 1, 3), hook=None).tolist()
        [[[1.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]]
    """

    def __init__(self, ranking: NeuronSet, *, fill: Fill | None = None) -> None:
        _check_sizes(ranking, fill)
        self._ranking, self._first, ranks = ranking, {}, {}
        for name, size in ranking.sizes.items():
            ranks[name] = torch.full((size,), len(ranking))
        for rank, neuron in enumerate(ranking):
            ranks[neuron.name][neuron.index] = rank
            self._first.setdefault(neuron.name, rank)
        self._ranks = {name: kept_on_devices(values) for name, values in ranks.items()}
        fill = fill or {name: torch.zeros(1) for name in ranks}
        self._fill = {name: kept_on_devices(fill[name]) for name in ranks}

    def names(self, k: int) -> list[str]:
        """The hook points of the best k."""
        return [name for name, first in self._first.items() if first < k]

    def hooks(
        self, ks: Sequence[int], *, spare: Spare | None = None
    ) -> list[tuple[str, Callable[..., Tensor]]]:
        """Hooks for one forward of ``len(ks)`` copies, the i-th without the best ``ks[i]``.

        Or for one generation, in which `spare` is about the prompt.
        """
        names = self.names(max(ks))
        return [(name, self._mask(name, ks, spare and spare(name))) for name in names]

    def _mask(
        self, name: str, ks: Sequence[int], spared: Bool[Tensor, "batch pos"] | None
    ) -> _RowMask:
        return _RowMask(
            name=name,
            size=self._ranking.sizes[name],
            ranks=self._ranks[name],
            fill=self._fill[name],
            limits=torch.tensor(ks)[:, None],
            spared=spared,
        )


@dataclass
class _RowMask:
    """The hook function of one hook point, for one forward or one generation.

    Attributes:
        name: The hook point's name.
        size: Its number of neurons.
        ranks: The rank of each neuron.
        fill: What a masked neuron is set to.
        limits: For each copy, the rank from which neurons are left alone.
        spared: The positions of the prompt that are left alone.
    """

    name: str
    size: int
    ranks: Callable[..., Tensor]
    fill: Callable[..., Tensor]
    limits: Int[Tensor, "copy 1"]
    spared: Bool[Tensor, "batch pos"] | None
    _is_prompt: bool = True

    def __call__(self, tensor: Tensor, hook: HookPoint | None = None) -> Tensor:  # noqa: ARG002
        self._check(tensor)
        n, device = len(self.limits), tensor.device
        copies = tensor.unflatten(0, (n, -1))  # [copy, batch, pos, d or head, d_head]
        shape = copies.shape[3:]  # a head's neurons are its channels
        masked = self.ranks(device, torch.long) < self.limits.to(device)
        masked = masked.view(n, 1, 1, *shape)
        # In `generate` the prompt comes first, even where it is as short as what follows it.
        if self.spared is not None and self._is_prompt:
            masked = masked & ~self.spared.to(device).view(*self.spared.shape, *[1] * len(shape))
        self._is_prompt = False
        fill = self.fill(device, tensor.dtype)
        # Not a product: what is masked may be infinite.
        return torch.where(masked, fill.expand(self.size).view(shape), copies).view(tensor.shape)

    def _check(self, tensor: Tensor) -> None:
        if tensor.shape[2:].numel() != self.size:
            raise ValueError(
                f"expected {self.size} neurons at {self.name!r}, got activations of shape "
                f"{tuple(tensor.shape)}: rank the neurons of this model"
            )


def _check_sizes(ranking: NeuronSet, fill: Fill | None) -> None:
    """Refuses a ranking or a fill that does not say enough."""
    if unknown := [name for name in ranking.names if name not in ranking.sizes]:
        raise ValueError(
            f"the number of neurons at {unknown[0]!r} is not known (in all, {len(unknown)} hook "
            "points): make the ranking with sizes, such as NeuronSet(neurons, sizes=...)"
        )
    if not fill:
        return
    for name, size in ranking.sizes.items():
        if name not in fill:
            raise ValueError(f"fill has no values for {name!r}, where neurons are ranked")
        if fill[name].shape != (size,):
            raise ValueError(
                f"expected fill to have {size} values for {name!r}, got shape "
                f"{tuple(fill[name].shape)}"
            )

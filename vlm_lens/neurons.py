"""Sets of neurons: chosen by index, mask or score, combined, saved, and turned into hooks.

A *neuron* is one entry of the last dimension of the activations at one hook point, so the hook
point's name is also the neuron's *site*. Papers mean different things by "neuron" (the activation
function's output, its product with the gate, an output channel of the MLP); the site says which.
"""

from __future__ import annotations

import html
import json
import operator
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import total_ordering
from pathlib import Path
from typing import Any, Literal, SupportsIndex, overload

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_lens.hooks.names import HookNameError, nearest_names
from vlm_lens.interventions import (
    ActivationLookup,
    Edit,
    ForwardHooks,
    NeuronHook,
    clamping,
    finite_number,
    neuron_range_error,
    reference_values,
    replacing,
    scaling,
)

FORMAT = "vlm_lens.NeuronSet"
VERSION = 1

_IN_BLOCK = re.compile(r"(?:(?P<component>.+?)\.)?blocks\.(?P<layer>[0-9]+)\.(?P<site>.+)")
_WRITTEN = re.compile(r"(?P<name>\S+)\[(?P<index>[0-9]+)\]")


def _split_name(name: str) -> tuple[str, int | None, str]:
    """Component, layer and site of a hook name."""
    if match := _IN_BLOCK.fullmatch(name):
        return match["component"] or "language_model", int(match["layer"]), match["site"]
    component, dot, site = name.partition(".")
    return (component, None, site) if dot else ("language_model", None, name)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """A sort key that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]


def _checked_index(index: object, name: str) -> int:
    try:
        number = operator.index(index)  # type: ignore[arg-type] - that is what is being tested
    except TypeError:
        number = -1
    if number < 0 or isinstance(index, bool):
        raise ValueError(
            f"neuron indices must be integers from 0, got {index!r} for {name!r}. Count from the "
            "start of the layer; to choose by mask or score use from_masks or from_scores."
        )
    return number


def _integers(indices: Any, name: str) -> list[int]:
    values = indices.tolist() if isinstance(indices, Tensor) else indices
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(
            f"the indices of {name!r} must be a list or one-dimensional tensor of integers, "
            f"got {_kind(indices)}. For one neuron pass [index]."
        )
    return [_checked_index(index, name) for index in values]


def _kind(value: object) -> str:
    """What a refused value is, for messages."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def _flat_scores(scores: Mapping[str, Tensor]) -> Float[Tensor, " total"]:
    """All scores one after the other in float64, which holds every floating-point type exactly."""
    if not scores:
        raise ValueError("scores are empty. Pass a tensor [d] of scores for each hook name.")
    for name, values in scores.items():
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim != 1:
            raise ValueError(
                f"the scores of {name!r} must be a floating-point tensor [d], got "
                f"{_kind(values)}. Reduce over batch and positions first, or call .float()."
            )
        if values.isnan().any():
            worst = int(values.isnan().nonzero()[0, 0])
            raise ValueError(
                f"the score of {name}[{worst}] is NaN and cannot be ranked. Remove such neurons "
                "or replace their scores, for example with -torch.inf to rank them last."
            )
    return torch.cat([values.detach().cpu().double() for values in scores.values()])


def _how_many(
    scores: Float[Tensor, " total"],
    *,
    k: int | None,
    ratio: int | float | None,
    threshold: int | float | None,
) -> int:
    """The number of best neurons that k, ratio or threshold asks for."""
    rules = {"k": k, "ratio": ratio, "threshold": threshold}
    if len(given := [rule for rule, value in rules.items() if value is not None]) != 1:
        raise ValueError(
            f"from_scores needs exactly one of k, ratio and threshold, got {given or 'none'}."
        )
    total = len(scores)
    if k is not None:
        if not isinstance(k, int) or not 0 <= k <= total:
            raise ValueError(f"k must be an integer from 0 to {total}, all neurons, got {k!r}.")
        return k
    if ratio is not None:
        share = finite_number("ratio", ratio)
        if not 0 <= share <= 1:
            raise ValueError(f"ratio must be from 0 to 1, got {ratio!r}. 0.01 takes 1 percent.")
        return round(share * total)
    return int((scores >= finite_number("threshold", threshold)).sum())


def _check_same_sizes(mine: Mapping[str, int], others: Mapping[str, int]) -> None:
    for name, size in mine.items():
        if name in others and others[name] != size:
            raise ValueError(
                f"{name!r} has {size} neurons in this set but {others[name]} in the other sizes: "
                "they come from different models. Choose the neurons anew for this model."
            )


def _ablation_number(value: object) -> float:
    if value == "zero":
        return 0.0
    if isinstance(value, str):
        raise ValueError(f"ablate takes 'zero', 'mean', 'min' or a finite number, got {value!r}.")
    return finite_number("the value to ablate with", value)


@total_ordering
@dataclass(frozen=True, slots=True)
class Neuron:
    """One neuron: a hook point and a position in the last dimension of its activations.

    Neurons sort by hook name, numbers in it by value (layer 2 before 10), then by index.

    Attributes:
        name: the hook name.
        index: the position, from 0.

    Raises:
        ValueError: if the name is empty or has white space, or the index is not an integer >= 0.

    Example:
        >>> neuron = Neuron("vision_encoder.blocks.3.mlp.hook_post", 42)
        >>> neuron.component, neuron.layer, neuron.site
        ('vision_encoder', 3, 'mlp.hook_post')
        >>> str(neuron)
        'vision_encoder.blocks.3.mlp.hook_post[42]'
        >>> Neuron.parse(str(neuron)) == neuron
        True
    """

    name: str
    index: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\S+", self.name):
            raise ValueError(
                "a neuron's name must be a hook name without white space, such as "
                f"'blocks.3.mlp.hook_post', got {self.name!r}."
            )
        object.__setattr__(self, "index", _checked_index(self.index, self.name))

    @property
    def component(self) -> str:
        """The part of the model: "language_model", "vision_encoder", "projector", ..."""
        return _split_name(self.name)[0]

    @property
    def layer(self) -> int | None:
        """The block's number in its component; None outside of blocks."""
        return _split_name(self.name)[1]

    @property
    def site(self) -> str:
        """The hook point within its block (or component), such as "mlp.hook_post"."""
        return _split_name(self.name)[2]

    @classmethod
    def parse(cls, text: str) -> Neuron:
        """The neuron that ``str`` writes as ``text``; ValueError if it is not of that form."""
        match = _WRITTEN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"cannot read {text!r} as a neuron: expected a hook name and an index, such as "
                "'blocks.3.mlp.hook_post[42]'."
            )
        return cls(match["name"], int(match["index"]))

    def __str__(self) -> str:
        return f"{self.name}[{self.index}]"

    def __lt__(self, other: Neuron) -> bool:
        if not isinstance(other, Neuron):
            return NotImplemented
        mine, others = _natural_order(self.name), _natural_order(other.name)
        return (mine, self.name, self.index) < (others, other.name, other.index)


class NeuronSet(Set[Neuron]):
    """An immutable, ranked set of neurons.

    It is a set (``|``, ``&``, ``-``, ``^``, ``<=``, ``in``) that remembers an order, the *rank*:
    iteration, ``neurons[0]`` and ``neurons[:10]`` follow it, and operators keep the left operand's
    order, then the right one's. Equality and hash ignore rank and sizes, as for any set.

    Args:
        neurons: the neurons, best first; repeated ones count once.
        sizes: the number of neurons at each hook point, as far as known. Later methods that
            need sizes then need not be told.

    Raises:
        TypeError: if something in it is not a Neuron.
        IndexError: if a neuron is beyond the size of its hook point.

    Example:
        >>> neurons = NeuronSet.from_indices({"blocks.0.mlp.hook_post": [7, 2],
        ...                                   "blocks.1.mlp.hook_post": [5]})
        >>> neurons
        NeuronSet(3 neurons: blocks.0.mlp.hook_post 2, blocks.1.mlp.hook_post 1)
        >>> [str(neuron) for neuron in neurons[:2]]
        ['blocks.0.mlp.hook_post[7]', 'blocks.0.mlp.hook_post[2]']
        >>> Neuron("blocks.1.mlp.hook_post", 5) in neurons - neurons[:2]
        True
    """

    __slots__ = ("_by_name", "_members", "_neurons", "_sizes")

    def __init__(
        self, neurons: Iterable[Neuron] = (), *, sizes: Mapping[str, int] | None = None
    ) -> None:
        self._neurons = tuple(dict.fromkeys(neurons))
        self._members = frozenset(self._neurons)
        by_name: dict[str, list[int]] = {}
        for neuron in self._neurons:
            if not isinstance(neuron, Neuron):
                raise TypeError(
                    f"a NeuronSet holds Neurons, got {neuron!r}. Make it with Neuron(name, index), "
                    "Neuron.parse(text) or NeuronSet.from_indices."
                )
            by_name.setdefault(neuron.name, []).append(neuron.index)
        self._by_name = {name: by_name[name] for name in sorted(by_name, key=_natural_order)}
        sizes = sizes or {}
        self._sizes = {name: sizes[name] for name in self._by_name if name in sizes}
        self._check_range(self._sizes)

    # ------------------------------------------------------------------ choosing neurons

    @classmethod
    def from_indices(
        cls,
        indices: Mapping[str, Iterable[SupportsIndex] | Int[Tensor, " k"]],
        *,
        sizes: Mapping[str, int] | None = None,
    ) -> NeuronSet:
        """The neurons at the given positions, ranked in the order given.

        Args:
            indices: for each hook name, positions in the last dimension, from 0.
            sizes: the number of neurons at each hook point, as far as known.

        Raises:
            ValueError: if an index is negative or not an integer.
            IndexError: if an index is beyond a known size.
        """
        neurons = [Neuron(name, i) for name, some in indices.items() for i in _integers(some, name)]
        return cls(neurons, sizes=sizes)

    @classmethod
    def from_masks(cls, masks: Mapping[str, Bool[Tensor, " d"]]) -> NeuronSet:
        """The neurons where a mask is True, ranked by hook name and index.

        Args:
            masks: for each hook name, a boolean tensor over all its neurons.

        Raises:
            ValueError: if a mask is not a boolean tensor of one dimension.

        Example:
            >>> import torch
            >>> NeuronSet.from_masks({"projector.mlp.hook_post": torch.tensor([True, False])})
            NeuronSet(1 neuron: projector.mlp.hook_post 1)
        """
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 1:
                raise ValueError(
                    f"the mask of {name!r} must be a boolean tensor [d], got {_kind(mask)}. "
                    "Compare first (scores > 0.5), or use from_scores or from_indices."
                )
        names = sorted(masks, key=_natural_order)
        chosen = {name: masks[name].nonzero()[:, 0] for name in names}
        return cls.from_indices(chosen, sizes={name: len(masks[name]) for name in names})

    @classmethod
    def from_scores(
        cls,
        scores: Mapping[str, Float[Tensor, " d"]],
        *,
        k: int | None = None,
        ratio: int | float | None = None,
        threshold: int | float | None = None,
    ) -> NeuronSet:
        """The neurons with the highest scores over all hook points, ranked best first.

        Equal scores rank by hook name (layer 2 before 10), then by index.

        Args:
            scores: for each hook name, the score of each of its neurons; infinities are allowed.
            k: how many neurons to take.
            ratio: which share of all neurons to take, from 0 to 1, rounded to whole neurons.
            threshold: take every neuron with at least this score.

        Raises:
            ValueError: if not exactly one of k, ratio and threshold is given, it is out of range,
                or the scores are empty, not floating-point tensors of one dimension, or NaN.

        Example:
            >>> import torch
            >>> scores = {"blocks.0.mlp.hook_post": torch.tensor([0.1, 0.9]),
            ...           "blocks.1.mlp.hook_post": torch.tensor([0.5, 0.2])}
            >>> [str(neuron) for neuron in NeuronSet.from_scores(scores, k=2)]
            ['blocks.0.mlp.hook_post[1]', 'blocks.1.mlp.hook_post[0]']
        """
        # Listed in the order that breaks ties, which a stable sort then keeps.
        scores = {name: scores[name] for name in sorted(scores, key=_natural_order)}
        flat = _flat_scores(scores)
        count = _how_many(flat, k=k, ratio=ratio, threshold=threshold)
        sizes = {name: len(values) for name, values in scores.items()}
        everyone = [(name, index) for name, size in sizes.items() for index in range(size)]
        chosen = flat.argsort(descending=True, stable=True)[:count].tolist()
        return cls((Neuron(*everyone[position]) for position in chosen), sizes=sizes)

    def filter(
        self,
        *,
        component: str | None = None,
        layer: int | Collection[int] | None = None,
        site: str | None = None,
    ) -> NeuronSet:
        """The neurons of a component, layer (or any of several layers) and site; rank kept."""
        layers = [layer] if isinstance(layer, int) else layer

        def wanted(name: str) -> bool:
            parts = _split_name(name)
            return (
                component in (None, parts[0])
                and (layers is None or parts[1] in layers)
                and site in (None, parts[2])
            )

        names = {name for name in self._by_name if wanted(name)}
        return self._with(neuron for neuron in self if neuron.name in names)

    def sample_control(self, sizes: Mapping[str, int] | None = None, *, seed: int = 0) -> NeuronSet:
        """A random control: as many neurons at each hook point, none of them in this set.

        The neuron at each rank of the control comes from the same hook point as the neuron at
        that rank of this set, so ``control[:k]`` is matched to ``neurons[:k]``.

        Args:
            sizes: the number of neurons at each hook point. None = the sizes this set knows.
            seed: the same seed gives the same control; the global random state is not used.

        Raises:
            ValueError: if a hook point has fewer neurons left than are to be drawn, or sizes
                are not known.
            HookNameError, IndexError: as for :meth:`check`.

        Example:
            >>> neurons = NeuronSet.from_indices({"projector.mlp.hook_post": [0, 1]})
            >>> control = neurons.sample_control({"projector.mlp.hook_post": 4})
            >>> sorted(neuron.index for neuron in control)
            [2, 3]
        """
        known = self._known_sizes(sizes)
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[str, Iterator[int]] = {}
        for name, chosen in self._by_name.items():
            rest = sorted(set(range(known[name])).difference(chosen))
            if len(rest) < len(chosen):
                raise ValueError(
                    f"cannot draw a control for {name!r}: {len(chosen)} of its {known[name]} "
                    f"neurons are chosen, which leaves {len(rest)}. Choose at most half of a layer."
                )
            order = torch.randperm(len(rest), generator=generator)[: len(chosen)]
            drawn[name] = iter([rest[i] for i in order.tolist()])
        return NeuronSet((Neuron(n.name, next(drawn[n.name])) for n in self), sizes=known)

    def _known_sizes(self, sizes: Mapping[str, int] | None) -> dict[str, int]:
        """The size of each of the set's hook points: those given, or else its own."""
        if sizes is not None:
            self.check(sizes)
            return {name: sizes[name] for name in self._by_name}
        if missing := [name for name in self._by_name if name not in self._sizes]:
            raise ValueError(
                f"the number of neurons at {missing[0]!r} is not known (in all, {len(missing)} "
                "hook points). Pass sizes, a mapping from hook names to numbers of neurons."
            )
        return self.sizes

    def _check_range(self, sizes: Mapping[str, int]) -> None:
        for name, chosen in self._by_name.items():
            if name in sizes and max(chosen) >= sizes[name]:
                raise neuron_range_error(name, max(chosen), sizes[name])

    # ------------------------------------------------------------------ as a set

    def __contains__(self, neuron: object) -> bool:
        return neuron in self._members

    def __iter__(self) -> Iterator[Neuron]:
        return iter(self._neurons)

    def __len__(self) -> int:
        return len(self._neurons)

    def __hash__(self) -> int:
        return hash(self._members)

    @overload
    def __getitem__(self, rank: int) -> Neuron: ...
    @overload
    def __getitem__(self, rank: slice) -> NeuronSet: ...
    def __getitem__(self, rank: int | slice) -> Neuron | NeuronSet:
        if isinstance(rank, slice):
            return self._with(self._neurons[rank])
        return self._neurons[rank]

    def __or__(self, other: Set[Any]) -> NeuronSet:
        return self._with([*self, *other], other)

    def __and__(self, other: Set[Any]) -> NeuronSet:
        return self._with((neuron for neuron in self if neuron in other), other)

    def __sub__(self, other: Set[Any]) -> NeuronSet:
        return self._with((neuron for neuron in self if neuron not in other), other)

    def __xor__(self, other: Set[Any]) -> NeuronSet:
        return (self - other) | (self._with(other, other) - self)

    def _with(self, neurons: Iterable[Neuron], other: Set[Neuron] = frozenset()) -> NeuronSet:
        """A set of these neurons, with the sizes that this set or ``other`` knows."""
        others = other._sizes if isinstance(other, NeuronSet) else {}
        _check_same_sizes(self._sizes, others)
        return NeuronSet(neurons, sizes=self._sizes | others)

    # ------------------------------------------------------------------ looking at it

    @property
    def names(self) -> tuple[str, ...]:
        """The hook names that have neurons in the set, layer 2 before layer 10."""
        return tuple(self._by_name)

    @property
    def indices(self) -> dict[str, Int[Tensor, " k"]]:
        """For each hook name, the positions of its neurons in rank order (int64)."""
        return {name: torch.tensor(chosen) for name, chosen in self._by_name.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """The number of neurons at each of the set's hook points, as far as known."""
        return dict(self._sizes)

    def masks(self, sizes: Mapping[str, int] | None = None) -> dict[str, Bool[Tensor, " d"]]:
        """For each hook name in the set, which of its neurons are chosen.

        Args:
            sizes: the number of neurons at each hook point. None = the sizes this set knows.

        Raises:
            ValueError: if sizes are not known.
            HookNameError, IndexError: as for :meth:`check`.
        """
        known = self._known_sizes(sizes)
        masks = {name: torch.zeros(known[name], dtype=torch.bool) for name in self._by_name}
        for name, chosen in self._by_name.items():
            masks[name][chosen] = True
        return masks

    def check(self, sizes: Mapping[str, int]) -> None:
        """Checks that every neuron exists in a model with these sizes.

        Args:
            sizes: the number of neurons at each hook point of the model.

        Raises:
            HookNameError: if a hook name is not among them.
            IndexError: if a neuron is beyond its hook point's size.
            ValueError: if the set was made for hook points of other sizes.
        """
        for name in self._by_name:
            if name not in sizes:
                near = nearest_names(name, sizes)
                hint = f" Nearest: {', '.join(near)}." if near else ""
                raise HookNameError(
                    f"Not one of the {len(sizes)} hook points: {name!r}.{hint} Check its spelling "
                    "and that the neurons come from this model."
                )
        self._check_range(sizes)
        _check_same_sizes(self._sizes, sizes)

    def count_by(
        self, key: Literal["component", "layer", "site", "name"]
    ) -> dict[str | int | None, int]:
        """How many neurons each component, layer, site or hook name has, in sorted order.

        Layers of the same number count together whatever their component: filter first to tell
        them apart.

        Example:
            >>> NeuronSet.from_indices({"blocks.0.hook_mlp_out": [1, 2]}).count_by("layer")
            {0: 2}
        """
        if key not in ("component", "layer", "site", "name"):
            raise ValueError(f"count_by takes 'component', 'layer', 'site' or 'name', got {key!r}.")
        counts: Counter[str | int | None] = Counter()
        for name, chosen in self._by_name.items():
            counts[getattr(Neuron(name, 0), key)] += len(chosen)
        return {
            value: counts[value] for value in sorted(counts, key=lambda v: _natural_order(str(v)))
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron: rank (from 0), component, layer (<NA> = none), site, index, name."""
        rows = [(n.component, n.layer, n.site, n.index, n.name) for n in self]
        frame = pd.DataFrame(rows, columns=["component", "layer", "site", "index", "name"])
        frame.insert(0, "rank", range(len(rows)))
        return frame.astype({"rank": "int64", "layer": "Int64", "index": "int64"})

    def __repr__(self) -> str:
        counts = [f"{name} {count}" for name, count in self.count_by("name").items()]
        if len(counts) > 6:
            counts = [*counts[:3], f"... {len(counts) - 4} more ...", counts[-1]]
        listed = f": {', '.join(counts)}" if counts else ""
        return f"NeuronSet({len(self)} neuron{'s' * (len(self) != 1)}{listed})"

    def _repr_html_(self) -> str:
        shown = self[:10].to_dataframe()
        head = "".join(f"<th>{html.escape(str(column))}</th>" for column in shown.columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in shown.itertuples(index=False)
        )
        return (
            f"<p>{html.escape(repr(self))}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )

    # ------------------------------------------------------------------ intervening

    def ablate(
        self,
        value: Literal["zero", "mean", "min"] | int | float = "zero",
        *,
        reference: ActivationLookup | None = None,
        where: Bool[Tensor, "batch pos"] | Bool[Tensor, " pos"] | None = None,
        generated: bool = True,
    ) -> ForwardHooks:
        """Hooks that replace the neurons' activations by a constant.

        Args:
            value: "zero"; a number; or "mean" or "min", each neuron's own mean or minimum over
                the reference activations.
            reference: for "mean" and "min", activations ``[..., d]`` by hook name, such as an
                ``ActivationCache``.
            where: the positions to touch, True = touch, in the shape of the activations' batch
                and position dimensions (image patches in a vision encoder). None = everywhere.
            generated: whether the positions generated one at a time after the prompt are touched
                as well; False needs ``where``. In generation ``where`` covers the prompt, which
                must be longer than one position to be told from generated ones.

        Returns:
            (hook name, hook function) pairs for ``fwd_hooks``, one per hook point.

        Raises:
            ValueError: if the value is unknown, or ``where``, ``generated`` or the reference do
                not fit (see the message).
            TypeError: if ``where`` is not boolean.
            HookNameError, IndexError: if the reference lacks a hook point or a neuron.

        Example:
            >>> import torch
            >>> neurons = NeuronSet.from_indices({"projector.mlp.hook_post": [1]})
            >>> [(name, hook)] = neurons.ablate("zero")
            >>> name, hook(torch.ones(1, 1, 3), hook=None).tolist()
            ('projector.mlp.hook_post', [[[1.0, 0.0, 1.0]]])
        """
        label = f"ablate {value}"
        if value not in ("mean", "min"):
            edit = replacing(torch.tensor(_ablation_number(value), dtype=torch.float64))
            return self._hooks(label, lambda _: edit, where, generated)
        found = {
            name: reference_values(name, chosen, reference, value)
            for name, chosen in self._by_name.items()
        }
        sizes = {name: size for name, (_, size) in found.items()}
        _check_same_sizes(self._sizes, sizes)
        sized = NeuronSet(self, sizes=sizes)
        return sized._hooks(label, lambda name: replacing(found[name][0]), where, generated)

    def scale(
        self,
        factor: int | float,
        *,
        where: Bool[Tensor, "batch pos"] | Bool[Tensor, " pos"] | None = None,
        generated: bool = True,
    ) -> ForwardHooks:
        """Hooks that multiply the neurons' activations by ``factor``.

        ``where``, ``generated`` and the result are as for :meth:`ablate`.

        Raises:
            ValueError: if the factor is not a finite number, or ``where`` or ``generated`` do
                not fit.
            TypeError: if ``where`` is not boolean.
        """
        edit = scaling(factor)
        return self._hooks(f"scale {factor}", lambda _: edit, where, generated)

    def clamp(
        self,
        minimum: int | float | None = None,
        maximum: int | float | None = None,
        *,
        where: Bool[Tensor, "batch pos"] | Bool[Tensor, " pos"] | None = None,
        generated: bool = True,
    ) -> ForwardHooks:
        """Hooks that limit the neurons' activations to ``[minimum, maximum]``.

        None = no limit on that side. ``where``, ``generated`` and the result are as for
        :meth:`ablate`.

        Raises:
            ValueError: if no limit is given, one is not a finite number, minimum > maximum, or
                ``where`` or ``generated`` do not fit.
            TypeError: if ``where`` is not boolean.
        """
        edit = clamping(minimum, maximum)
        return self._hooks(f"clamp {minimum} to {maximum}", lambda _: edit, where, generated)

    def _hooks(
        self,
        label: str,
        edit_of: Callable[[str], Edit],
        where: Tensor | None,
        generated: bool,
    ) -> ForwardHooks:
        return [
            (
                name,
                NeuronHook(
                    name,
                    chosen,
                    edit_of(name),
                    label=label,
                    size=self._sizes.get(name),
                    where=where,
                    generated=generated,
                ),
            )
            for name, chosen in self._by_name.items()
        ]

    # ------------------------------------------------------------------ files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the set, with rank and known sizes, as readable JSON.

        The file is replaced in one step, so a reader (or a crash) never meets half of one.

        Raises:
            OSError: if the file cannot be written.
        """
        path = Path(path)
        content = {
            "format": FORMAT,
            "version": VERSION,
            "sizes": self._sizes,
            "neurons": [str(neuron) for neuron in self],
        }
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NeuronSet:
        """Reads a set written by :meth:`save`, rank and sizes included.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a neuron set of a version this library reads.
        """
        raw = Path(path).read_bytes()
        try:
            return cls._decoded(json.loads(raw))
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} is not a neuron set that NeuronSet.load can read: {error} "
                "Write it with NeuronSet.save."
            ) from error

    @classmethod
    def _decoded(cls, content: Any) -> NeuronSet:
        expected = {"format", "version", "sizes", "neurons"}
        if not isinstance(content, dict) or set(content) != expected:
            raise ValueError(f"expected an object with the keys {sorted(expected)}.")
        if content["format"] != FORMAT or content["version"] != VERSION:
            raise ValueError(
                f"expected format {FORMAT!r} version {VERSION}, got {content['format']!r} "
                f"version {content['version']!r}."
            )
        sizes, written = content["sizes"], content["neurons"]
        if not isinstance(sizes, dict) or not all(type(s) is int for s in sizes.values()):
            raise ValueError("expected sizes to map hook names to integers.")
        if not isinstance(written, list) or not all(isinstance(text, str) for text in written):
            raise ValueError("expected neurons to be a list of strings.")
        neurons = cls((Neuron.parse(text) for text in written), sizes=sizes)
        if len(neurons) != len(written):
            raise ValueError("a neuron is listed more than once.")
        return neurons

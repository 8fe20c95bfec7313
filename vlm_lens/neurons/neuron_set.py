"""A ranked set of neurons: made, combined, looked at, saved and turned into hooks."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from typing import Any, Literal, SupportsIndex, overload

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlm_lens.hooks.names import HookNameError, nearest_names
from vlm_lens.neurons import choosing, files
from vlm_lens.neurons.checks import check_range, check_same_sizes
from vlm_lens.neurons.interventions import Interventions
from vlm_lens.neurons.neuron import Neuron, natural_order, split_name


class NeuronSet(Interventions, Set[Neuron]):
    """An immutable, ranked set of neurons.

    It is a set (``|``, ``&``, ``-``, ``^``, ``<=``, ``in``) that remembers an order, the *rank*:
    iteration, ``neurons[0]`` and ``neurons[:10]`` follow it, and operators keep the left operand's
    order, then the right one's. Equality and hash ignore rank and sizes, as for any set.

    Args:
        neurons: The neurons, best first; repeated ones count once.
        sizes: The number of neurons at each hook point, as far as known (``cache.sizes``);
            methods that need sizes then need not be told.

    Raises:
        TypeError: Something in it is not a Neuron.
        IndexError: A neuron is beyond the size of its hook point.

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
        self._by_name = {name: by_name[name] for name in sorted(by_name, key=natural_order)}
        sizes = sizes or {}
        self._sizes = {name: sizes[name] for name in self._by_name if name in sizes}
        check_range(self._by_name, self._sizes)

    # Choosing neurons -------------------------------------------------------------------------

    @classmethod
    def from_indices(
        cls,
        indices: Mapping[str, Iterable[SupportsIndex] | Int[Tensor, " k"]],
        *,
        sizes: Mapping[str, int] | None = None,
    ) -> NeuronSet:
        """The neurons at the given positions of each hook point, ranked in the order given.

        Raises:
            ValueError: An index is negative or not an integer.
            IndexError: An index is beyond a known size.
        """
        return cls(choosing.neurons_at(indices), sizes=sizes)

    @classmethod
    def from_masks(cls, masks: Mapping[str, Bool[Tensor, " d"]]) -> NeuronSet:
        """The neurons where a mask over a hook point's neurons is True, ranked by name and index.

        Raises:
            ValueError: A mask is not a boolean tensor of one dimension.
        """
        neurons = choosing.neurons_in(masks)
        return cls(neurons, sizes={name: len(mask) for name, mask in masks.items()})

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
            scores: For each hook name, the score of each of its neurons; infinities are allowed.
            k: How many neurons to take.
            ratio: Which share of all neurons to take, from 0 to 1, rounded to whole neurons.
            threshold: Take every neuron with at least this score.

        Raises:
            ValueError: Not exactly one of k, ratio and threshold is given, it is out of range, or
                the scores are empty, not floating-point tensors of one dimension, or NaN.

        Example:
            >>> scores = {"blocks.0.mlp.hook_post": torch.tensor([0.1, 0.9]),
            ...           "blocks.1.mlp.hook_post": torch.tensor([0.5, 0.2])}
            >>> [str(neuron) for neuron in NeuronSet.from_scores(scores, k=2)]
            ['blocks.0.mlp.hook_post[1]', 'blocks.1.mlp.hook_post[0]']
        """
        neurons = choosing.best_neurons(scores, k=k, ratio=ratio, threshold=threshold)
        return cls(neurons, sizes={name: len(values) for name, values in scores.items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NeuronSet:
        """Reads a set written by `save`, rank and sizes included.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a neuron set of a version this library reads.
        """
        return files.read(path, cls)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the set, with rank and known sizes, as readable JSON; OSError where it cannot."""
        files.write(path, self, self._sizes)

    def filter(
        self,
        *,
        component: str | None = None,
        layer: int | Collection[int] | None = None,
        site: str | None = None,
    ) -> NeuronSet:
        """The neurons of a component, layer (or any of several layers) and site; rank kept."""
        layers = [layer] if isinstance(layer, int) else layer
        return self._with(
            neuron
            for neuron in self
            if component in (None, neuron.component)
            and (layers is None or neuron.layer in layers)
            and site in (None, neuron.site)
        )

    def sample_control(self, sizes: Mapping[str, int] | None = None, *, seed: int = 0) -> NeuronSet:
        """A random control: as many neurons at each hook point, none of them in this set.

        The neuron at each rank of the control comes from the same hook point as the neuron at
        that rank of this set, so ``control[:k]`` is matched to ``neurons[:k]``.

        Args:
            sizes: The number of neurons at each hook point. None = the sizes this set knows.
            seed: The same seed gives the same control; the global random state is not used.

        Raises:
            ValueError: More than half of a hook point is chosen, or sizes are not known.
            HookNameError, IndexError: As for `check`.

        Example:
            >>> neurons = NeuronSet.from_indices({"projector.mlp.hook_post": [0, 1]})
            >>> control = neurons.sample_control({"projector.mlp.hook_post": 4})
            >>> sorted(neuron.index for neuron in control)
            [2, 3]
        """
        known = self._known_sizes(sizes)
        drawn = choosing.drawn_like(self._neurons, known, seed=seed, avoid="always")
        return NeuronSet(drawn, sizes=known)

    # As a set ---------------------------------------------------------------------------------

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
        chosen = self._neurons[rank]
        return chosen if isinstance(chosen, Neuron) else self._with(chosen)

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
        check_same_sizes(self._sizes, others)
        return NeuronSet(neurons, sizes=self._sizes | others)

    # Looking at it ----------------------------------------------------------------------------

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
        """For each hook name, which of its neurons are chosen; sizes as in `sample_control`."""
        known = self._known_sizes(sizes)
        masks = {name: torch.zeros(known[name], dtype=torch.bool) for name in self._by_name}
        for name, chosen in self._by_name.items():
            masks[name][chosen] = True
        return masks

    def check(self, sizes: Mapping[str, int]) -> None:
        """Checks that every neuron exists in a model with these sizes.

        Raises:
            HookNameError: A hook name is not among them.
            IndexError: A neuron is beyond its hook point's size.
            ValueError: The set was made for hook points of other sizes.
        """
        for name in self._by_name:
            if name not in sizes:
                raise HookNameError(
                    f"Not one of the {len(sizes)} hook points: {name!r}. Nearest: "
                    f"{', '.join(nearest_names(name, sizes)) or 'none'}. Check its spelling and "
                    "that the neurons come from this model."
                )
        check_range(self._by_name, sizes)
        check_same_sizes(self._sizes, sizes)

    def _known_sizes(self, sizes: Mapping[str, int] | None) -> Mapping[str, int]:
        """The sizes given, checked, or else the set's own."""
        if sizes is not None:
            self.check(sizes)
            return sizes
        if missing := [name for name in self._by_name if name not in self._sizes]:
            raise ValueError(
                f"the number of neurons at {missing[0]!r} is not known (in all, {len(missing)} "
                "hook points). Pass sizes, a mapping from hook names to numbers of neurons."
            )
        return self._sizes

    def count_by(
        self, key: Literal["component", "layer", "site", "name"]
    ) -> dict[str | int | None, int]:
        """How many neurons each component, layer (of any component) or site has, sorted.

        Example:
            >>> NeuronSet.from_indices({"blocks.0.hook_mlp_out": [1, 2]}).count_by("layer")
            {0: 2}
        """
        if key not in ("component", "layer", "site", "name"):
            raise ValueError(f"count_by takes 'component', 'layer', 'site' or 'name', got {key!r}.")
        counts = Counter(getattr(neuron, key) for neuron in self)
        ordered = sorted(counts, key=lambda value: natural_order(str(value)))
        return {value: counts[value] for value in ordered}

    def to_dataframe(self) -> pd.DataFrame:
        """One row per neuron: rank (from 0), component, layer (<NA> = none), site, index, name."""
        rows = [(*split_name(n.name), n.index, n.name) for n in self]
        frame = pd.DataFrame(rows, columns=["component", "layer", "site", "index", "name"])
        frame.insert(0, "rank", range(len(rows)))
        return frame.astype({"rank": "int64", "layer": "Int64", "index": "int64"})

    def __repr__(self) -> str:
        counts = [f"{name} {len(chosen)}" for name, chosen in self._by_name.items()]
        if len(counts) > 6:
            counts = [*counts[:3], f"... {len(counts) - 4} more ...", counts[-1]]
        listed = f": {', '.join(counts)}" if counts else ""
        return f"NeuronSet({len(self)} neuron{'s' * (len(self) != 1)}{listed})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self[:10].to_dataframe().to_html(index=False)}"

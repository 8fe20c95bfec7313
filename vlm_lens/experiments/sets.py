"""How sets of neurons overlap, and how they are spread over layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.neuron import natural_order, split_name
from vlm_lens.plots.cells import Cell, cells
from vlm_lens.plots.layout import shown
from vlm_lens.plots.lines import Panel, lines, lines_of
from vlm_lens.results import Section
from vlm_lens.results.table import TableResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PAIR = (
    *("a", "b", "n_a", "n_b", "shared", "jaccard", "expected_shared", "expected_jaccard"),
    *("expected_in_layers", "jaccard_in_layers", "p_value"),
)
_COUNTS = ("set", "layer", "name", "n_neurons", "share", "density")


@dataclass(frozen=True, eq=False, repr=False)
class Overlap(TableResult):
    """How many neurons pairs of sets share.

    Each row is a pair, ``a`` and ``b``: ``n_a``, ``n_b``, how many are ``shared``, the ``jaccard``
    index (shared by all that are in either), and what chance would give for sets of these sizes:
    ``expected_shared`` and ``expected_jaccard`` for neurons drawn from all layers, and
    ``expected_in_layers`` and ``jaccard_in_layers`` for neurons drawn from each layer as often as
    the sets have them there. ``p_value`` is the probability that draws from all layers share as
    many or more (hypergeometric).
    """

    KIND = "set_overlap"
    TITLE: ClassVar[str] = "Neurons that sets share"

    def matrix(self, value: str = "jaccard") -> pd.DataFrame:
        """One of the columns as a symmetric table; a set and itself have NaN.

        Raises:
            KeyError: There is no such column.
        """
        names = list(dict.fromkeys([*self.frame["a"], *self.frame["b"]]))
        wide = pd.DataFrame(math.nan, index=names, columns=names)
        for a, b, found in self.frame[["a", "b", value]].itertuples(index=False):
            wide.loc[a, b] = wide.loc[b, a] = float(found)
        return wide

    def sections(self) -> list[Section]:
        """Its figure, and its numbers for who opens them."""
        return [
            Section(title=self.title, figure=self.plot()),
            Section(table=self.table(), shown="folded"),
        ]

    def plot(self) -> go.Figure:
        """A heat map of the Jaccard indices, with those that chance would give."""
        entries, sizes = [], {}
        for pair in self.frame.to_dict("records"):
            a, b = str(pair["a"]), str(pair["b"])
            sizes |= {a: pair["n_a"], b: pair["n_b"]}
            said = pair["jaccard"], *_said(pair)
            entries += [Cell(a, b, *said), Cell(b, a, *said)]
        names = dict.fromkeys([*self.frame["a"], *self.frame["b"]])
        labels = {name: f"{name} ({sizes[name]:,})" for name in names}
        return cells(
            entries,
            rows=labels,
            columns=labels,
            title=self.TITLE,
            colour_title="Jaccard index",
            remarks=["Shared neurons of all that are in either set.", *self.notes],
        )


@dataclass(frozen=True, eq=False, repr=False)
class LayerCounts(TableResult):
    """How many of each set's neurons are in each layer.

    Each row is a set and a layer: ``set``, ``layer``, ``name`` of the hook point, how many
    neurons of the set are there (``n_neurons``), the ``share`` of the set that this is, and the
    ``density``: the share of the layer's neurons that this is.
    """

    KIND = "layer_counts"
    TITLE: ClassVar[str] = "Where each set of neurons is"

    def table(self) -> pd.DataFrame:
        """One row for each layer, one column for each set: the numbers of neurons."""
        names = list(dict.fromkeys(self.frame["set"]))
        wide = self.frame.pivot(index="layer", columns="set", values="n_neurons")
        return wide[names].reset_index().rename_axis(columns=None)

    def plot(self) -> go.Figure:
        """Lines over the layers."""
        rows = self.frame.to_dict("records")
        selected = lines_of(rows, "layer", "n_neurons", by=["set"])
        return lines([Panel("selected neurons", selected)], title=self.TITLE)


def overlap(
    selected: Mapping[str, NeuronSet], *, sizes: Mapping[str, int] | None = None
) -> Overlap:
    """How many neurons each pair of sets shares, and how many chance would let them share.

    Args:
        selected: Neurons by name, e.g. by modality of `miner.select`.
        sizes: The number of neurons at each hook point that could have been chosen, e.g.
            ``scores.sizes``; by default those that the sets know, which leaves out layers where
            none is chosen.

    Raises:
        ValueError: There are fewer than two sets, or sizes are not known.

    Example:
        >>> name = "blocks.0.mlp.hook_act"
        >>> one, two = (NeuronSet.from_indices({name: [i, i + 1]}) for i in (0, 1))
        >>> found = overlap({"text": one, "image": two}, sizes={name: 8})
        >>> found.frame[["shared", "jaccard", "expected_shared"]].iloc[0].tolist()
        [1.0, 0.3333333333333333, 0.5]
    """
    if len(selected) < 2:
        raise ValueError(f"expected at least two sets of neurons to compare, got {len(selected)}")
    known = _known_sizes(selected, sizes)
    rows = [
        (a, b, *_pair(one, two, known)) for (a, one), (b, two) in combinations(selected.items(), 2)
    ]
    return Overlap(pd.DataFrame(rows, columns=list(_PAIR)), {"sizes": known})


def _pair(one: NeuronSet, two: NeuronSet, sizes: Mapping[str, int]) -> tuple[float | int, ...]:
    n_a, n_b, shared, total = len(one), len(two), len(one & two), sum(sizes.values())
    of_one, of_two = one.count_by("name"), two.count_by("name")
    anywhere = n_a * n_b / total
    in_layers = sum(of_one.get(name, 0) * of_two.get(name, 0) / n for name, n in sizes.items())
    expected = [(found, _jaccard(found, n_a, n_b)) for found in (shared, anywhere, in_layers)]
    return (n_a, n_b, *sum(expected, ()), _at_least(shared, n_a, n_b, total))


def by_layer(
    selected: Mapping[str, NeuronSet], *, sizes: Mapping[str, int] | None = None
) -> LayerCounts:
    """How many of each set's neurons are in each layer.

    Args:
        selected: Neurons by name, e.g. by modality of `miner.select`.
        sizes: The number of neurons at each hook point, e.g. ``scores.sizes``; by default those
            that the sets know, which leaves out layers where none is chosen.

    Raises:
        ValueError: There are no sets, or sizes are not known.

    Example:
        >>> name = "blocks.0.mlp.hook_act"
        >>> neurons = NeuronSet.from_indices({name: [0, 1]}, sizes={name: 8})
        >>> by_layer({"text": neurons}).frame["density"].tolist()
        [0.25]
    """
    if not selected:
        raise ValueError("expected at least one set of neurons, got none")
    known = _known_sizes(selected, sizes)
    rows = []
    for called, neurons in selected.items():
        counts = neurons.count_by("name")
        for name, size in known.items():
            n = counts.get(name, 0)
            where = called, split_name(name)[1], name
            rows.append((*where, n, n / max(len(neurons), 1), n / size))
    return LayerCounts(pd.DataFrame(rows, columns=list(_COUNTS)), {"sizes": known})


def _said(pair: Mapping[Any, Any]) -> tuple[str, str]:
    """What the cell of two sets says, and what it says when pointed at."""
    shared = f"{pair['shared']:,} shared"
    hint = [
        f"<b>{shown(pair['a'])} and {shown(pair['b'])}</b>",
        f"{shared} of {pair['n_a']:,} and {pair['n_b']:,}",
        f"by chance {pair['expected_shared']:.3g} (in the same layers "
        f"{pair['expected_in_layers']:.3g})",
        f"p = {pair['p_value']:.2g}",
    ]
    text = f"<b>{pair['jaccard']:.2f}</b>  {shared}<br>by chance {pair['expected_jaccard']:.2f}"
    return text, "<br>".join(hint)


def _known_sizes(
    selected: Mapping[str, NeuronSet], sizes: Mapping[str, int] | None
) -> dict[str, int]:
    """The number of neurons at every hook point, from the first layer to the last."""
    if sizes is None:
        sizes = {name: n for neurons in selected.values() for name, n in neurons.sizes.items()}
    for called, neurons in selected.items():
        if missing := [name for name in neurons.names if name not in sizes]:
            raise ValueError(
                f"the number of neurons at {missing[0]!r}, of {called!r}, is not known: pass "
                "sizes, e.g. scores.sizes"
            )
        neurons.check(sizes)
    return {name: sizes[name] for name in sorted(sizes, key=natural_order)}


def _jaccard(shared: int | float, n_a: int, n_b: int) -> float:
    either = n_a + n_b - shared
    return shared / either if either else math.nan


def _at_least(shared: int, n_a: int, n_b: int, total: int) -> float:
    """The probability that random sets of these sizes share as many neurons or more."""
    log_all = _log_choose(total, n_b)
    most = min(n_a, n_b)
    least = max(shared, n_a + n_b - total, 0)
    terms = (
        math.exp(_log_choose(n_a, k) + _log_choose(total - n_a, n_b - k) - log_all)
        for k in range(least, most + 1)
    )
    return min(1.0, math.fsum(terms))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

"""What a search for critical neurons found: how many it takes, which, and the way there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from vlm_lens.masking.measurement import Measurement, Stages
from vlm_lens.neurons import NeuronSet
from vlm_lens.neurons.places import places
from vlm_lens.plots.collapse_curve import Curve, collapse_curve
from vlm_lens.plots.text_gallery import TextGallery, text_gallery
from vlm_lens.plots.where_they_sit import where_they_sit
from vlm_lens.results import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

By = Literal["component", "layer", "matrix", "site"]


@dataclass(frozen=True, eq=False, repr=False)
class CriticalNeurons(Result):
    """The fewest best-ranked neurons without which a model collapses.

    Attributes:
        method: What ranked them, e.g. "CAN" or "random, seed 0".
        k: How many it takes, k*; None if the model does not collapse without any number measured,
            or counts as collapsed with nothing masked.
        ranking: The neurons in the order in which they were masked: the sets are its prefixes.
        curve: What was measured, from k = 0 (nothing masked) on, by rising k.
        stages: Where degradation begins and where the collapse is complete.
        is_monotone: False if a larger k was measured that did not collapse, or a smaller that did.
        prompts: What was asked.
        references: The answer that each prompt's sample holds, where it holds one.
        parameters: With what it was found: every parameter, the model and the versions.
        notes: What a reader must know, e.g. that the curve is not monotone.
        sizes: The number of neurons at every hook point that was scored, so that places without
            any ranked neuron are known too; by default those of the ranking.
        matrices: The matrix ("down", "fc1", ...) of each of these hook points, as `matrices_of`
            finds it for the model; where it is missing, the site stands for it.

    Raises:
        ValueError: The curve does not start at 0 or does not rise, a k is larger than the ranking,
            or the numbers of prompts, references and answers differ.

    Example:
        >>> from vlm_lens.neurons import NeuronSet
        >>> ranking = NeuronSet.from_indices(
        ...     {"blocks.1.hook_mlp_out": [7, 2, 5]}, sizes={"blocks.1.hook_mlp_out": 8})
        >>> found = CriticalNeurons(
        ...     method="CAN", k=2, ranking=ranking, is_monotone=True,
        ...     curve=(Measurement(0, {"perplexity": 1.5}, False),
        ...            Measurement(1, {"perplexity": 2.5}, False),
        ...            Measurement(2, {"perplexity": 99.0}, True)),
        ...     stages=Stages(1, 2, "degradation: perplexity doubled; collapse: k*"))
        >>> found
        CriticalNeurons(CAN: k* = 2 of 3 ranked, language_model 2; degradation from 1)
        >>> [str(neuron) for neuron in found.neurons]
        ['blocks.1.hook_mlp_out[7]', 'blocks.1.hook_mlp_out[2]']
        >>> found.table()
           k  collapsed  perplexity
        0  0      False         1.5
        1  1      False         2.5
        2  2       True        99.0
    """

    KIND = "critical"
    DIGITS = ".6g"

    method: str
    k: int | None
    ranking: NeuronSet
    curve: tuple[Measurement, ...]
    stages: Stages
    is_monotone: bool
    prompts: tuple[str, ...] = ()
    references: tuple[str | None, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    matrices: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ks = [measurement.k for measurement in self.curve]
        if ks[:1] != [0] or ks != sorted(set(ks)):
            raise ValueError(f"expected a curve that rises from k = 0, got k = {ks}.")
        if self.k is not None and self.k not in ks[1:]:
            raise ValueError(f"expected k among those measured ({ks[1:]}), got {self.k}.")
        if ks[-1] > len(self.ranking):
            raise ValueError(
                f"expected a ranking of at least {ks[-1]} neurons, as many as were masked, got "
                f"{len(self.ranking)}."
            )
        counts = {len(self.prompts), len(self.references)}
        counts |= {len(m.answers) for m in self.curve if m.answers is not None}
        if len(counts) > 1:
            raise ValueError(
                f"expected as many references and answers as prompts, got {sorted(counts)}."
            )

    @property
    def neurons(self) -> NeuronSet:
        """The critical neurons, best first; none if the model did not collapse."""
        return self.ranking[: self.k or 0]

    @property
    def collapsed_before(self) -> bool:
        """Whether the model counts as collapsed with nothing masked, so that there is no k*."""
        return bool(self.curve[0].collapsed)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of all that was measured."""
        return tuple(dict.fromkeys(name for m in self.curve for name in m.metrics))

    # As tables --------------------------------------------------------------------------------

    def table(self) -> pd.DataFrame:
        """One row a measurement: k, collapsed and each metric (NaN where it was not measured)."""
        rows = [{"k": m.k, "collapsed": m.collapsed, **m.metrics} for m in self.curve]
        return pd.DataFrame(rows, columns=["k", "collapsed", *self.metrics])

    def histogram(self, by: By) -> pd.DataFrame:
        """How many of the neurons at each place are critical.

        Args:
            by: "component"; or, within each component, "layer", "matrix" (gate, up, down, fc1, ...)
                or "site".

        Returns:
            A row for each place that was ranked, in the model's order: the component, the layer
            (<NA> outside of blocks), matrix or site, how many neurons are ``critical``, and how
            many ``neurons`` there are (<NA> if not known).

        Raises:
            ValueError: `by` is something else.

        Example:
            >>> from vlm_lens.neurons import NeuronSet
            >>> size = {"projector.mlp.hook_pre": 96}
            >>> found = CriticalNeurons(
            ...     method="CAN", k=1, is_monotone=True, stages=Stages(None, 1, ""), sizes=size,
            ...     ranking=NeuronSet.from_indices({"projector.mlp.hook_pre": [5, 9]}),
            ...     curve=(Measurement(0, {}), Measurement(1, {}, True)))
            >>> found.histogram("component")
               component  critical  neurons
            0  projector         1       96
        """
        if by not in ("component", "layer", "matrix", "site"):
            raise ValueError(
                f"histogram takes 'component', 'layer', 'matrix' or 'site', got {by!r}."
            )
        keys = ["component"] if by == "component" else ["component", by]
        sizes = {**self.ranking.sizes, **self.sizes}
        frame = places(self.neurons, sizes=sizes, matrices=self.matrices)
        grouped = frame.groupby(keys, sort=False, dropna=False)[["critical", "neurons"]]
        # Where one size is not known, nor is the sum.
        return grouped.agg(lambda column: column.sum(skipna=False)).reset_index()

    # Looking at it ----------------------------------------------------------------------------

    def plot(self, *, others: Mapping[str, CriticalNeurons] | None = None) -> go.Figure:
        """The collapse curve, with both stages and the criteria; `others` are drawn beside it."""
        model = self.parameters.get("model")
        remarks = [f"model: {model}" if model else "", *self.notes]
        return collapse_curve(
            self._curve(),
            title=self.summary(),
            stages=self.stages,
            criteria={name: _texts(self.parameters.get(name)) for name in ("collapse", "degraded")},
            others={name: other._curve() for name, other in (others or {}).items()},
            remarks=[remark for remark in remarks if remark not in self.summary()],
        )

    def _curve(self) -> Curve:
        return Curve(self.method, self.curve, len(self.ranking), self.k)

    def where(self) -> go.Figure:
        """Where the critical neurons sit, by component, layer and matrix."""
        n = len(self.neurons)
        title = f"where the {f'{n:,} critical neurons sit' if n != 1 else 'critical neuron sits'}"
        if self.k is None:
            title = f"no collapse within {self.curve[-1].k:,} neurons"
        return where_they_sit(
            self.neurons,
            sizes={**self.ranking.sizes, **self.sizes},
            matrices=self.matrices,
            what="critical",
            title=f"{self.method}: {title}",
        )

    def gallery(self, *, n: int = 8, ks: Sequence[int] | None = None) -> TextGallery:
        """Clean and masked answers side by side; see `vlm_lens.plots.text_gallery`."""
        return text_gallery(
            self.curve,
            prompts=self.prompts,
            references=self.references,
            stages=self.stages,
            title=self.summary(),
            n=n,
            ks=ks,
        )

    def summary(self) -> str:
        """What was found, in a line."""
        if self.collapsed_before:
            parts = ["collapsed before anything is masked"]
        elif self.k is None:
            parts = [f"no collapse within {self.curve[-1].k:,} neurons"]
        else:
            where = [
                f"{name} {count}" for name, count in self.neurons.count_by("component").items()
            ]
            parts = [f"k* = {self.k:,} of {len(self.ranking):,} ranked, {', '.join(where)}"]
        if self.stages.onset is not None:
            parts.append(f"degradation from {self.stages.onset:,}")
        if self.stages.degraded_before:
            parts.append("degraded before anything is masked")
        if not self.is_monotone:
            parts.append("not monotone")
        return f"{self.method}: {'; '.join(parts)}"

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        return (
            f"<p><b>{escape(self.summary())}</b></p>{_html_table(self)}"
            f"<p>{escape(self.stages.rule)}</p>{notes and f'<ul>{notes}</ul>'}"
        )


def _html_table(result: CriticalNeurons) -> str:
    """The metrics at the measurements that tell the story: clean, both stages, k* and before."""
    last, k = result.curve[-1].k, result.k
    asked = {0, last if k is None else k, result.stages.onset, result.stages.collapse}
    asked |= set() if k is None else {k - 1}
    told = [m for m in result.curve if m.k in asked]
    head = "".join(f"<th>k = {m.k:,}</th>" for m in told)
    rows = [
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{_number(m.metrics.get(name))}</td>" for m in told)
        + "</tr>"
        for name in result.metrics
    ]
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _texts(given: Any) -> list[str]:
    """Criteria among parameters: one, several or none."""
    return [given] if isinstance(given, str) else [str(one) for one in given or ()]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

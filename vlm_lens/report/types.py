"""The page of neuron types: which there are in which layer, how sure that is, and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlm_lens.analyses.neuron_types_result import LABELS
from vlm_lens.pages.environment import render
from vlm_lens.pages.tables import NOTHING, Table, of_frame, of_parameters, written
from vlm_lens.pages.words import percent
from vlm_lens.plots.page import as_json
from vlm_lens.report import types_words as words

if TYPE_CHECKING:
    from vlm_lens.analyses.neuron_types_result import NeuronTypes

_BEST = 10
_SMALLEST = 1e-12
_THRESHOLDS = ("T_v", "n_v", "T_t", "n_t")


def render_types(
    types: NeuronTypes,
    *,
    model_name: str,
    notes: Sequence[str] = (),
    options: Mapping[str, Any],
    command: str,
) -> str:
    """Renders the page.

    Args:
        types: What was found.
        model_name: What the model was loaded as.
        notes: What a reader must know about the samples.
        options: What the command was told, defaults included.
        command: The command that makes the page again.

    Returns:
        HTML that asks for nothing else.
    """
    tried = types.sensitivity().to_dict("records")
    return render(
        "report/types.html",
        command=command,
        has_figures=True,
        headline=words.headline(types, model_name),
        sentences=[*words.on_chance(types), *words.on_confidence(types)],
        notes=[*notes, *words.on_left_out(types)],
        model_name=model_name,
        n_samples=types.parameters["n_samples"],
        n_neurons=words.n_neurons(types),
        labels=of_labels(types),
        on_layers=words.on_layers(types),
        figure=as_json(types.plot()),
        confident=as_json(types.plot(high_confidence=True)),
        on_thresholds=words.on_thresholds(types),
        near=of_sensitivity(_near(tried)),
        every=of_sensitivity(tried),
        best=best(types),
        parameters=of_parameters(_parameters(types, options)),
    )


def of_labels(types: NeuronTypes) -> Table:
    """How many neurons have each label, how sure that is, and what chance would give."""
    alpha, n_sure, rows = types.parameters["alpha"], 0, []
    for place, row in enumerate(types.table().to_dict("records")):
        its = [site.p_values[site.labels == place] for site in types.sites.values()]
        small = sum(int((values <= alpha).sum()) for values in its)
        counts = [row["high_confidence"], small, row["significant"], row["never_active"]]
        n_sure += row["significant"]
        cells = [written(row["neurons"]), percent(row["share"]), *map(written, counts)]
        rows.append([str(row["label"]), *cells])
    expected = [f"{alpha * words.n_neurons(types):,.0f}", f"{alpha * n_sure:,.0f}"]
    rows.append(["expected by chance, at most", *[NOTHING] * 3, *expected, NOTHING])
    heads = ["label", "neurons", "share", f"share above {types.parameters['high_confidence']:g}"]
    heads += [f"p ≤ {alpha:g}", "more than chance, corrected", "never active"]
    return Table(heads, rows, [False, *(True for _ in heads[1:])])


def of_sensitivity(tried: list[dict[Any, Any]]) -> Table:
    """Which share has each label at some thresholds, and which share another one."""
    rows = [
        [
            *(f"{row[name]:g}" for name in _THRESHOLDS),
            *(percent(row[name]) for name in (*LABELS, "changed")),
        ]
        for row in tried
    ]
    heads = [*_THRESHOLDS, *LABELS, "another label"]
    return Table(heads, rows, [True] * len(heads))


def _near(rows: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    """The thresholds that count, and those where only one is another."""
    return [row for row in rows if sum(row[name] != rows[0][name] for name in _THRESHOLDS) <= 1]


def best(types: NeuronTypes) -> dict[str, Table]:
    """The neurons of each label whose label is the surest; of equally sure ones the largest share.

    A large share alone says little where the prompts have many tokens of a kind.
    """
    order = {f"p_{label[0]}": label for label in LABELS}
    names = ["component", "layer", "site", "index", *order, "maximum", "p_value", "q_value"]
    tables, every = {}, dict(iter(types.to_dataframe().groupby("label", observed=True)))
    for share, label in order.items():
        if label in every:
            its = every[label].assign(p_value=every[label]["p_value"].clip(lower=_SMALLEST))
            rows = its.sort_values(["p_value", share], ascending=[True, False]).head(_BEST)
            sure = {name: rows[name].map(_small) for name in ("p_value", "q_value")}
            tables[label] = of_frame(rows.filter(names).assign(**sure))
    return tables


def _small(value: float) -> str:
    """A p-value; what is below the precision of their sums is not told apart."""
    return f"below {_SMALLEST:g}" if value <= _SMALLEST else f"{value:.2g}"


def _parameters(types: NeuronTypes, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the results depend on."""
    about = {name: value for name, value in types.parameters.items() if name not in options}
    return {**options, **about}

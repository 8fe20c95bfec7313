"""What typing neurons found, as a page says it: made from its tables, whatever is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from vlm_lens.analyses.neuron_types_labels import LABELS
from vlm_lens.pages.words import between, listing, percent
from vlm_lens.results import Section

if TYPE_CHECKING:
    import plotly.graph_objects as go

Rows = Sequence[Mapping[Any, Any]]

_BEST, _SMALLEST = 10, 1e-12
_THRESHOLDS = ["T_v", "n_v", "T_t", "n_t"]
_WHAT = (
    "A neuron is what its most active samples are: visual where enough of the image's tokens are "
    "activated, text where enough of the answer's are, multi-modal where both are, unknown where "
    "neither is. What chance would give is computed, not sampled: within each sample it is drawn "
    "anew which of these tokens are the image's."
)
_OTHERS = "The first row is what counts on this page; in the others one threshold is another."


def headline(labels: Rows) -> str:
    """Which share of the neurons has which label, the largest first."""
    rows = sorted(labels, key=lambda row: -row["neurons"])
    shares = [f"{percent(row['share'])} {row['label']}" for row in rows]
    return f"{_total(labels, 'neurons'):,} neurons: {listing(shares)}"


def _total(labels: Rows, name: str) -> int:
    return sum(row[name] for row in labels)


# The labels ---------------------------------------------------------------------------------------


def of_labels(frame: pd.DataFrame, *, alpha: float, level: float) -> Section:
    """How many neurons have each label, how sure that is, and what chance would give."""
    labels = frame.to_dict("records")
    n, sure = _total(labels, "neurons"), _total(labels, "significant")
    table = frame.assign(share=frame["share"].map(percent)).astype(object)
    table.loc[len(table)] = dict.fromkeys(table.columns) | {
        "label": "expected by chance, at most",
        "small": f"{alpha * n:,.0f}",
        "significant": f"{alpha * sure:,.0f}",
    }
    heads = {"high_confidence": f"share above {level:g}", "small": f"p ≤ {alpha:g}"}
    table = table.rename(columns={**heads, "significant": "more than chance, corrected"})
    said = [*on_chance(labels, alpha=alpha), *on_confidence(labels, level=level)]
    return Section(sentences=said, table=table, aside=_WHAT)


def on_chance(labels: Rows, *, alpha: float) -> list[str]:
    """For how many neurons the label is more than chance."""
    n, sure = _total(labels, "neurons"), _total(labels, "significant")
    said = [
        "If it did not matter which tokens are the image's, at most "
        f"{alpha * n:,.0f} of {n:,} labels would be expected to have a p-value up to {alpha:g}; "
        f"{_total(labels, 'small'):,} have."
    ]
    if not sure:
        return [*said, "Corrected for their number, no label is more than chance."]
    parts = [
        f"{row['significant']:,} of {row['neurons']:,} {row['label']}"
        for row in labels
        if row["neurons"]
    ]
    said.append(
        f"Corrected for their number {sure:,} ({percent(sure / n)}) are more than chance, of which "
        f"up to about {alpha * sure:,.0f} may still be chance: {listing(parts)}."
    )
    return said


def on_confidence(labels: Rows, *, level: float) -> list[str]:
    """How many labels are of high confidence, and how many neurons are never active."""
    n_high, n_never = (_total(labels, name) for name in ("high_confidence", "never_active"))
    said = [
        f"{n_high:,} ({percent(n_high / _total(labels, 'neurons'))}) have a share above "
        f"{level:g}, which the paper calls high confidence."
    ]
    return [*said, f"{n_never:,} are never active, and so unknown."] if n_never else said


# Layers and thresholds ----------------------------------------------------------------------------


def of_layers(frame: pd.DataFrame, figure: go.Figure) -> Section:
    """In which layer each label has its largest share."""
    rows, parts = frame.to_dict("records"), []
    for label in LABELS:
        row = max(rows, key=lambda one: one[label])
        place = row["name"] if pd.isna(row["layer"]) else f"layer {row['layer']}"
        if row[label] > 0:
            parts.append(f"{label} in {place} ({percent(row[label])})")
    said = [f"The largest share of each label is of {listing(parts)}."] if len(rows) > 1 else []
    return Section(title="By layer", sentences=said, figure=figure)


def of_thresholds(tried: pd.DataFrame) -> list[Section]:
    """The thresholds that count, those where one is another, and all of them."""
    shown = tried.assign(**{name: tried[name].map(percent) for name in (*LABELS, "changed")})
    shown = shown.rename(columns={"changed": "another label"})
    n_others = (tried[_THRESHOLDS] != tried[_THRESHOLDS].iloc[0]).sum(axis=1)
    near, every = shown.loc[n_others <= 1, :], Section(table=shown, shown="folded")
    title, said = "At other thresholds", [on_thresholds(tried)]
    first = Section(title=title, sentences=said, table=near, aside=_OTHERS, shown="page")
    return [first, every] if len(near) < len(shown) else [first]


def on_thresholds(tried: pd.DataFrame) -> str:
    """How far the labels depend on the thresholds."""
    rows = tried.to_dict("records")
    if len(rows) < 2:
        return "No other thresholds were tried."
    ranges = [f"{label} {_range([row[label] for row in rows])}" for label in LABELS]
    changed = _range([row["changed"] for row in rows[1:]])
    return (
        f"At {len(rows) - 1:,} other combinations of thresholds {changed} of the neurons have "
        f"another label, and the shares are: {listing(ranges)}."
    )


def _range(shares: Sequence[float]) -> str:
    return between(min(shares), max(shares))


# Neurons ------------------------------------------------------------------------------------------


def surest(neurons: pd.DataFrame) -> list[Section]:
    """Of each label the neurons with the smallest p-values; of equal ones the largest shares.

    A large share alone says little where the prompts have many tokens of a kind.
    """
    sections = []
    for label, rows in neurons.groupby("label", observed=True):
        rows = rows.assign(p_value=rows["p_value"].clip(lower=_SMALLEST))
        order = ["p_value", f"p_{str(label)[0]}"]
        rows = rows.sort_values(order, ascending=[True, False]).head(_BEST)
        sure = {name: rows[name].map(_small) for name in ("p_value", "q_value")}
        kept = [name for name in rows.columns if name not in ("name", "label")]
        table = rows.assign(**sure).filter(kept)
        sections.append(Section(title=f"The surest {label} neurons", table=table, shown="page"))
    return sections


def _small(value: float) -> str:
    """A p-value; what is below the precision of their sums is not told apart."""
    return f"below {_SMALLEST:g}" if value <= _SMALLEST else f"{value:.2g}"

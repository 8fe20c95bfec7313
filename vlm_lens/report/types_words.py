"""What typing neurons found, in sentences: made from its numbers, whatever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_lens.analyses.neuron_types_result import LABELS
from vlm_lens.counted import counted
from vlm_lens.neurons.neuron import split_name
from vlm_lens.pages.words import listing, percent

if TYPE_CHECKING:
    from vlm_lens.analyses.neuron_types_result import NeuronTypes


def headline(types: NeuronTypes, model_name: str) -> str:
    """Which share of the neurons has which label, the largest first."""
    rows = sorted(types.table().to_dict("records"), key=lambda row: -row["neurons"])
    shares = [f"{percent(row['share'])} {row['label']}" for row in rows]
    return f"The {n_neurons(types):,} neurons of {model_name}: {listing(shares)}"


def on_chance(types: NeuronTypes) -> list[str]:
    """For how many neurons the label is more than chance."""
    rows, alpha, n = types.table().to_dict("records"), types.parameters["alpha"], n_neurons(types)
    sure = sum(row["significant"] for row in rows)
    small = sum(int((site.p_values <= alpha).sum()) for site in types.sites.values())
    said = [
        "If it did not matter which tokens are the image's, at most "
        f"{alpha * n:,.0f} of {n:,} labels would be expected to have a p-value up to {alpha:g}; "
        f"{small:,} have."
    ]
    if not sure:
        return [*said, "Corrected for their number, no label is more than chance."]
    parts = [
        f"{row['significant']:,} of {row['neurons']:,} {row['label']}"
        for row in rows
        if row["neurons"]
    ]
    said.append(
        f"Corrected for their number {sure:,} ({percent(sure / n)}) are more than chance, of which "
        f"up to about {alpha * sure:,.0f} may still be chance: {listing(parts)}."
    )
    return said


def on_confidence(types: NeuronTypes) -> list[str]:
    """How many labels are of high confidence, and how many neurons are never active."""
    rows, level = types.table().to_dict("records"), types.parameters["high_confidence"]
    n_high, n_never = (
        sum(row[name] for row in rows) for name in ("high_confidence", "never_active")
    )
    said = [
        f"{n_high:,} ({percent(n_high / n_neurons(types))}) have a share above {level:g}, which "
        "the paper calls high confidence."
    ]
    if n_never:
        said.append(f"{n_never:,} are never active, and so unknown.")
    return said


def on_layers(types: NeuronTypes) -> list[str]:
    """In which layer each label has its largest share."""
    if len(types.sites) < 2:
        return []
    rows, parts = types.by_layer().to_dict("records"), []
    for label in LABELS:
        row = max(rows, key=lambda one: one[label])
        if row[label] > 0:
            parts.append(f"{label} in {_place(row['name'])} ({percent(row[label])})")
    return [f"The largest share of each label is of {listing(parts)}."]


def _place(name: str) -> str:
    layer = split_name(name)[1]
    return name if layer is None else f"layer {layer}"


def on_thresholds(types: NeuronTypes) -> list[str]:
    """How far the labels depend on the thresholds."""
    rows = types.sensitivity().to_dict("records")
    if len(rows) < 2:
        return ["No other thresholds were tried."]
    ranges = [f"{label} {_range([row[label] for row in rows])}" for label in LABELS]
    changed = _range([row["changed"] for row in rows[1:]])
    return [
        f"At {len(rows) - 1:,} other combinations of thresholds {changed} of the neurons have "
        f"another label, and the shares are: {listing(ranges)}."
    ]


def _range(shares: list[float]) -> str:
    return f"{percent(min(shares))} to {percent(max(shares))}"


def on_left_out(types: NeuronTypes) -> list[str]:
    """How many samples do not count, and why."""
    reasons: dict[str, int] = {}
    for why in types.parameters.get("left_out", {}).values():
        reasons[why] = reasons.get(why, 0) + 1
    return [f"{counted(n, 'sample')} left out: {why}" for why, n in reasons.items()]


def n_neurons(types: NeuronTypes) -> int:
    """How many neurons have a label."""
    return sum(len(site.maxima) for site in types.sites.values())

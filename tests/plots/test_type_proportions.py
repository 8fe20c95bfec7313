"""Stacked bars of types by layer: every neuron is in one part of its layer's bar."""

from __future__ import annotations

import pytest
import torch

from vlm_lens.analyses.neuron_types_labels import LABELS, SiteTypes
from vlm_lens.analyses.neuron_types_result import NeuronTypes
from vlm_lens.plots.type_proportions import type_proportions


def types(names: list[str]) -> NeuronTypes:
    torch.manual_seed(0)
    sites = {}
    for name in names:
        counts = torch.distributions.Multinomial(10, torch.tensor([3.0, 2.0, 4.0, 1.0]))
        found = counts.sample((40,)).T.long()
        sites[name] = SiteTypes(found, torch.ones(40), torch.rand(4, 40) ** 8)
    return NeuronTypes(sites, {"high_confidence": 0.5, "alpha": 0.05, "n_samples": 10})


LAYERS = [f"blocks.{i}.mlp.hook_act" for i in range(3)]


def test_bars_are_the_shares_of_the_table() -> None:
    found = types(LAYERS)
    figure, frame = found.plot(), found.by_layer()
    sure, rest = figure.data[::2], figure.data[1::2]
    for label, one, other in zip(LABELS, sure, rest, strict=True):
        assert one.name == f"{label}, more than chance"
        assert other.name == label
        assert list(one.x) == ["0", "1", "2"]
        assert list(one.y) == pytest.approx(frame[f"significant {label}"].tolist())
        both = [a + b for a, b in zip(one.y, other.y, strict=True)]
        assert both == pytest.approx(frame[label].tolist())
    totals = [sum(bar.y[i] for bar in figure.data) for i in range(3)]
    assert totals == pytest.approx([1, 1, 1])
    assert figure.layout.barmode == "stack"


def test_high_confidence_leaves_the_rest_of_a_bar_empty() -> None:
    figure = types(LAYERS).plot(high_confidence=True)
    totals = [sum(bar.y[i] for bar in figure.data) for i in range(3)]
    assert all(0 < total < 1 for total in totals)
    assert "share above 0.5 only" in figure.layout.title.text


def test_hints_say_how_many() -> None:
    found = types(LAYERS)
    figure, table = found.plot(), found.by_layer()
    hint = figure.data[0].customdata[1]
    n = round(table["significant visual"][1] * 40)
    assert hint == (
        f"<b>blocks.1.mlp.hook_act</b><br>visual, more than chance<br>{n} of 40 neurons"
    )


def test_several_sites_of_a_layer_go_by_their_names() -> None:
    names = ["blocks.0.mlp.hook_act", "blocks.0.mlp.hook_post", "projector.mlp.hook_post"]
    assert list(types(names).plot().data[0].x) == names
    assert list(types(names[2:]).plot().data[0].x) == names[2:]


def test_names_are_shown_letter_by_letter() -> None:
    frame = types(["blocks.0.<b>"]).by_layer()
    figure = type_proportions(frame, title="<i>mine</i>")
    assert "&lt;i&gt;mine" in figure.layout.title.text
    assert "&lt;b&gt;" in figure.data[0].customdata[0]


def test_nothing_is_sent_anywhere() -> None:
    assert "sendChartToCloud" in types(LAYERS).plot().layout.modebar.remove

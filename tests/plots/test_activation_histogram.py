"""Histograms of activations and the statistics by layer show what was counted."""

from __future__ import annotations

import numpy as np
import pytest

from tests.statistics.test_histograms import SAMPLES
from tests.tiny import Tiny
from vlm_lens.plots import activation_histogram, statistics_by_layer
from vlm_lens.statistics import Histogram, collect

COUNTED = Histogram.of(
    {"image": np.array([0.0, 0.1, 0.2, 3.9]), "text": np.array([4.0])}, name="n<b>[3]", bins=4
)


def test_stairs_are_the_shares_of_each_bin():
    image, text = activation_histogram(COUNTED, label="activation").data
    assert image.x.tolist() == [0, 1, 1, 2, 2, 3, 3, 4]
    np.testing.assert_allclose(image.y, [0.75, 0.75, 0, 0, 0, 0, 0.25, 0.25], atol=1e-9)
    assert image.customdata[0].tolist() == [0, 1, 3, 0.75]
    assert image.customdata[-1].tolist() == [3, 4, 1, 0.25]
    assert (image.name, text.name) == ("image (4)", "text (1)")
    assert image.line.color != text.line.color
    assert text.customdata[-1].tolist() == [3, 4, 1, 1]


def test_the_axis_reaches_below_the_smallest_share():
    figure = activation_histogram(COUNTED)
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.range[0] == pytest.approx(np.log10(0.125))
    linear = activation_histogram(COUNTED, log_y=False)
    assert linear.layout.yaxis.type == "linear"
    assert figure.layout.title.text.startswith("Activations of n&lt;b&gt;[3]")


def test_types_without_positions_are_left_out():
    counted = Histogram("n", COUNTED.edges, {**COUNTED.counts, "special": np.zeros(4, dtype=int)})
    assert len(activation_histogram(counted).data) == 2
    with pytest.raises(ValueError, match="expected activations of n, got none"):
        activation_histogram(Histogram("n", COUNTED.edges, {}))


def test_lines_are_the_statistics_of_each_layer(llava: Tiny):
    statistics = collect(llava.model, SAMPLES, sites="*mlp.hook_post", top_k=0)
    figure = statistics_by_layer(statistics, component="language_model")
    lines = {(line.yaxis, line.name, line.line.dash): line for line in figure.data}
    for panel, measure in (("y", "active_rate"), ("y2", "mean"), ("y3", "max")):
        for kind in ("image", "text", "special"):
            found = getattr(statistics, measure)
            rows = [found[f"blocks.{i}.mlp.hook_post"][kind].double().numpy() for i in range(3)]
            means = [float(row.mean()) for row in rows]
            tails = [float(np.quantile(row, 0.99)) for row in rows]
            assert lines[panel, kind, "solid"].y == pytest.approx(means, rel=1e-5)
            assert lines[panel, kind, "dot"].y == pytest.approx(tails, rel=1e-5)
            assert lines[panel, kind, "solid"].x == (0, 1, 2)
    encoder = statistics_by_layer(statistics, component="vision_encoder")
    assert {line.name for line in encoder.data} == {"image"}
    with pytest.raises(ValueError, match="expected a component with layers, one of .*'projector'"):
        statistics_by_layer(statistics, component="projector")

"""Histograms count what NumPy counts, whatever batches samples come in."""

from __future__ import annotations

import numpy as np
import pytest

from tests.tiny import Tiny, picture
from vlm_lens.data import Sample
from vlm_lens.neurons import Neuron
from vlm_lens.statistics import Histogram, collect, collect_histograms

SAMPLES = [
    Sample([picture(0)], "what color is the circle ?"),
    Sample([], "left"),
    Sample([picture(1, size=(50, 34))], "two ?"),
]
MLP = Neuron("blocks.1.mlp.hook_post", 7)
ENCODER = Neuron("vision_encoder.blocks.0.mlp.hook_post", 3)
ATTENTION = Neuron("blocks.0.hook_attn_out", 20)


def activations(tiny: Tiny, neuron: Neuron, kind: str) -> np.ndarray:
    """A neuron's activations at the positions of one kind, sample by sample."""
    found = []
    for sample in SAMPLES:
        inputs = tiny.model.prepare(images=sample.images or None, text=sample.text)
        _, cache = tiny.model.run_with_cache(inputs)
        if neuron.name not in cache.cache_dict:
            continue
        values = cache[neuron.name][0, :, neuron.index]
        if neuron.component == "language_model":
            values = values[inputs.token_map[0].mask(kind)]
        found.append(values.double().numpy())
    return np.concatenate(found)


@pytest.mark.full
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_counts_are_those_of_numpy(llava: Tiny, batch_size: int):
    neurons = [MLP, ENCODER, ATTENTION]
    found = collect_histograms(llava.model, SAMPLES, neurons, bins=10, batch_size=batch_size)
    for neuron in neurons:
        kinds = ["image"] if neuron is ENCODER else ["image", "text", "special"]
        assert list(found[neuron].counts) == kinds
        assert found[neuron].name == str(neuron)
        for kind in kinds:
            values = activations(llava, neuron, kind)
            counts = found[neuron].counts[kind]
            assert counts.sum() == len(values)
            # Batches round differently, and one activation may fall on the other side of a border.
            expected = np.histogram(values, found[neuron].edges + [-1e-5, *[0] * 9, 1e-5])[0]
            assert np.abs(counts - expected).sum() <= 2


def test_statistics_spare_the_first_pass(llava: Tiny, monkeypatch: pytest.MonkeyPatch):
    statistics = collect(llava.model, SAMPLES, sites=[MLP.name], top_k=0)
    expected = collect_histograms(llava.model, SAMPLES, [MLP], bins=5)[MLP]
    monkeypatch.setattr("vlm_lens.statistics.histograms.collect", None)
    found = collect_histograms(llava.model, SAMPLES, [MLP], bins=5, statistics=statistics)[MLP]
    assert found.edges.tolist() == expected.edges.tolist()
    assert {k: v.tolist() for k, v in found.counts.items()} == {
        k: v.tolist() for k, v in expected.counts.items()
    }


def test_what_is_beyond_the_statistics_is_in_the_outer_bins(llava: Tiny):
    statistics = collect(llava.model, SAMPLES[1:2], sites=[MLP.name], top_k=0)
    found = collect_histograms(llava.model, SAMPLES, [MLP], bins=4, statistics=statistics)[MLP]
    values = activations(llava, MLP, "image")
    assert found.counts["image"].sum() == len(values)
    outside = (values < found.edges[1]).sum(), (values >= found.edges[-2]).sum()
    assert (found.counts["image"][0], found.counts["image"][-1]) == outside


def test_token_types_may_overlap(llava: Tiny):
    found = collect_histograms(llava.model, SAMPLES, [MLP], token_types=["any", "text+special"])
    n_image = 2 * 16
    assert found[MLP].counts["any"].sum() - found[MLP].counts["text+special"].sum() == n_image


def test_activations_at_hand():
    histogram = Histogram.of({"a": np.array([0.0, 1.0]), "b": np.array([[2.0]])}, name="x", bins=2)
    assert histogram.edges.tolist() == [0, 1, 2]
    assert {k: v.tolist() for k, v in histogram.counts.items()} == {"a": [1, 1], "b": [0, 1]}
    with pytest.raises(ValueError, match="expected finite activations, got 2, of which 1"):
        Histogram.of({"a": np.array([0.0, np.nan])}, name="x")
    with pytest.raises(ValueError, match="expected finite activations, got 0"):
        Histogram.of({}, name="x")


def test_refuses_what_there_is_not(llava: Tiny):
    with pytest.raises(ValueError, match="expected neurons and at least one bin, got 0 and 60"):
        collect_histograms(llava.model, SAMPLES, [])
    with pytest.raises(IndexError, match="there is no neuron 64 at 'blocks.1.mlp.hook_post'"):
        collect_histograms(llava.model, SAMPLES, [Neuron(MLP.name, 64)])
    statistics = collect(llava.model, SAMPLES, sites=[MLP.name], top_k=0)
    with pytest.raises(KeyError, match="no statistics of"):
        collect_histograms(llava.model, SAMPLES, [ATTENTION], statistics=statistics)

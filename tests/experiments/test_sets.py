"""Overlap of sets and their spread over layers, against counting."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import hypergeom

from vlm_lens import NeuronSet
from vlm_lens.experiments.sets import LayerCounts, Overlap, by_layer, overlap

SIZES = {"blocks.0.mlp.hook_act": 10, "blocks.1.mlp.hook_act": 10, "blocks.10.mlp.hook_act": 10}
FIRST, SECOND, LAST = SIZES
SETS = {
    "text": NeuronSet.from_indices({FIRST: [0, 1, 2, 3], SECOND: [5]}, sizes=SIZES),
    "image": NeuronSet.from_indices({FIRST: [2, 3, 4], LAST: [1]}, sizes=SIZES),
    "audio": NeuronSet.from_indices({SECOND: [0]}, sizes=SIZES),
}


def test_overlap_is_counted_and_compared_with_chance():
    found = overlap(SETS, sizes=SIZES).frame.set_index(["a", "b"])
    pair = found.loc[("text", "image")]
    assert (pair.n_a, pair.n_b, pair.shared) == (5, 4, 2)
    assert pair.jaccard == pytest.approx(2 / 7)
    assert pair.expected_shared == pytest.approx(5 * 4 / 30)
    assert pair.expected_in_layers == pytest.approx(4 * 3 / 10)
    assert pair.expected_jaccard == pytest.approx((20 / 30) / (9 - 20 / 30))
    assert pair.p_value == pytest.approx(hypergeom.sf(1, 30, 5, 4))
    assert found.loc[("text", "audio")].p_value == pytest.approx(1.0)
    assert found.loc[("image", "audio")].shared == 0


def test_chance_is_what_random_sets_share():
    rng = np.random.default_rng(0)
    shared = [
        len({*rng.choice(30, 5, replace=False)} & {*rng.choice(30, 4, replace=False)})
        for _ in range(4000)
    ]
    pair = overlap(SETS, sizes=SIZES).frame.iloc[0]
    assert np.mean(shared) == pytest.approx(pair.expected_shared, abs=0.05)
    assert np.mean([n >= 2 for n in shared]) == pytest.approx(pair.p_value, abs=0.02)


def test_overlap_is_a_symmetric_matrix():
    matrix = overlap(SETS, sizes=SIZES).matrix()
    assert matrix.loc["image", "text"] == matrix.loc["text", "image"] == pytest.approx(2 / 7)
    assert np.isnan(np.diag(matrix)).all()


def test_layers_are_counted_from_first_to_last():
    found = by_layer(SETS, sizes=dict(reversed(SIZES.items())))
    assert found.table().to_numpy().tolist() == [[0, 4, 3, 0], [1, 1, 0, 1], [10, 0, 1, 0]]
    row = found.frame.iloc[0]
    assert (row.set, row.share, row.density) == ("text", 0.8, 0.4)


def test_what_sets_know_of_sizes_is_enough():
    known = by_layer(SETS).table()
    assert known.equals(by_layer(SETS, sizes=SIZES).table())
    nothing = {"text": NeuronSet.from_indices({FIRST: [0]}), "image": SETS["image"]}
    assert overlap(nothing).frame.iloc[0].n_a == 1  # the other one knows
    with pytest.raises(ValueError, match="pass sizes, e.g. scores.sizes"):
        by_layer({"text": NeuronSet.from_indices({FIRST: [0]})})


def test_empty_sets_share_nothing():
    found = overlap({"text": SETS["text"], "none": NeuronSet()}, sizes=SIZES).frame.iloc[0]
    assert (found.shared, found.jaccard, found.p_value) == (0, 0.0, pytest.approx(1.0))
    assert by_layer({"none": NeuronSet()}, sizes=SIZES).frame["share"].tolist() == [0, 0, 0]


def test_one_set_has_nothing_to_be_compared_with():
    with pytest.raises(ValueError, match="at least two sets"):
        overlap({"text": SETS["text"]})
    with pytest.raises(ValueError, match="at least one set"):
        by_layer({})


def test_results_are_saved_and_loaded(tmp_path):
    for found, kind in ((overlap(SETS, sizes=SIZES), Overlap), (by_layer(SETS), LayerCounts)):
        found.save(tmp_path)
        loaded = kind.load(tmp_path)
        assert loaded.frame.equals(found.frame)
        assert loaded.parameters == found.parameters

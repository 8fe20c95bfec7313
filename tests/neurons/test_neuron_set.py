"""Neuron sets: choosing, set algebra, sizes, controls, tables."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_lens.hooks.names import HookNameError
from vlm_lens.neurons import Neuron, NeuronSet

POST0, POST2, POST10 = (f"blocks.{layer}.mlp.hook_post" for layer in (0, 2, 10))
VISION, PROJECTOR = "vision_encoder.blocks.2.mlp.hook_post", "projector.mlp.hook_post"
NAMES = [POST0, POST2, POST10, VISION, PROJECTOR, "blocks.2.hook_mlp_out"]
SIZES = dict.fromkeys(NAMES, 40)

neurons_lists = st.lists(
    st.builds(Neuron, st.sampled_from(NAMES), st.integers(min_value=0, max_value=12))
)


def written(neurons: NeuronSet) -> list[str]:
    return [str(neuron) for neuron in neurons]


# Choosing --------------------------------------------------------------------------------------


def test_from_indices_keeps_the_order_given_and_drops_repeats():
    neurons = NeuronSet.from_indices({POST2: [7, 3, 7], POST0: torch.tensor([5])})
    assert written(neurons) == [f"{POST2}[7]", f"{POST2}[3]", f"{POST0}[5]"]
    assert neurons == NeuronSet.from_indices({POST0: np.array([5]), POST2: iter([3, 7])})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "indices",
    [
        [-1],
        [1.0],
        ["3"],
        "12",
        [True],
        torch.tensor([0.5]),
        torch.tensor([True]),
        torch.tensor([[1]]),
    ],
)
def test_from_indices_refuses_what_is_not_an_index(indices):
    with pytest.raises(ValueError, match=r"must be integers from 0, got .* for 'blocks.0.*from_m"):
        NeuronSet.from_indices({POST0: indices})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("indices", [3, torch.tensor(3), None])
def test_from_indices_refuses_what_is_not_a_list(indices):
    with pytest.raises(ValueError, match=r"must be a list or one-dimensional tensor.*\[index\]"):
        NeuronSet.from_indices({POST0: indices})


def test_known_sizes_bound_the_indices():
    with pytest.raises(IndexError, match=r"blocks\.0\.mlp\.hook_post\[4\] .* 4 neurons, 0 to 3"):
        NeuronSet.from_indices({POST0: [4]}, sizes={POST0: 4})


def test_masks_round_trip_in_layer_order():
    masks = {POST10: torch.tensor([True, False, True]), POST2: torch.tensor([False, True])}
    neurons = NeuronSet.from_masks(masks)
    assert written(neurons) == [f"{POST2}[1]", f"{POST10}[0]", f"{POST10}[2]"]
    back = neurons.masks()
    assert list(back) == [POST2, POST10]
    assert all(torch.equal(back[name], masks[name]) for name in masks)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "mask", [torch.tensor([0.0, 1.0]), torch.tensor([[True]]), torch.tensor([0, 1]), [True, False]]
)
def test_from_masks_refuses_what_is_not_a_mask(mask):
    with pytest.raises(ValueError, match=r"mask of .* must be a boolean tensor \[d\], got"):
        NeuronSet.from_masks({POST0: mask})


score_values = st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("inf")])
score_tables = st.dictionaries(
    st.sampled_from(NAMES), st.lists(score_values, min_size=1, max_size=6), min_size=1
)


@given(score_tables, st.data())
def test_from_scores_ranks_like_a_plain_sort(table, data):
    scores = {name: torch.tensor(values) for name, values in table.items()}
    pairs = [(-v, Neuron(n, i)) for n, values in table.items() for i, v in enumerate(values)]
    expected = [neuron for _, neuron in sorted(pairs)]
    k = data.draw(st.integers(0, len(pairs)))
    assert list(NeuronSet.from_scores(scores, k=k)) == expected[:k]
    ratio = data.draw(st.floats(0, 1))
    by_ratio = list(NeuronSet.from_scores(scores, ratio=ratio))
    assert by_ratio == expected[: round(ratio * len(pairs))]
    threshold = data.draw(st.sampled_from([-2.0, 0.0, 0.25, 2.0, 3.0]))
    at_least = [neuron for negated, neuron in sorted(pairs) if -negated >= threshold]
    assert list(NeuronSet.from_scores(scores, threshold=threshold)) == at_least


def test_ties_do_not_depend_on_the_mappings_order_or_dtype():
    table = {POST10: torch.ones(3), POST2: torch.ones(2, dtype=torch.bfloat16)}
    turned = dict(reversed(table.items()))
    first = NeuronSet.from_scores(table, k=3)
    assert written(first) == [f"{POST2}[0]", f"{POST2}[1]", f"{POST10}[0]"]
    assert list(first) == list(NeuronSet.from_scores(turned, k=3))


def test_scores_with_gradients_are_ranked_and_sizes_known():
    neurons = NeuronSet.from_scores({POST0: torch.rand(9, requires_grad=True)}, ratio=0.29)
    assert len(neurons) == 3
    assert neurons.sizes == {POST0: 9}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "exactly one of k, ratio and threshold, got none"),
        ({"k": 1, "ratio": 0.5}, r"exactly one .* got \['k', 'ratio'\]"),
        ({"k": 5}, "k must be an integer from 0 to 4, all neurons, got 5"),
        ({"k": -1}, "k must be an integer"),
        ({"k": 1.0}, r"k must be an integer.*got 1\.0"),
        ({"ratio": 1.5}, r"ratio must be from 0 to 1, got 1\.5"),
        ({"ratio": float("nan")}, "ratio must be a finite number, got nan"),
        ({"threshold": float("nan")}, "threshold must be a finite number"),
    ],
)
def test_from_scores_needs_one_sensible_rule(rule, message):
    with pytest.raises(ValueError, match=message):
        NeuronSet.from_scores({POST0: torch.zeros(4)}, **rule)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "scores are empty"),
        ({POST0: torch.tensor([0.0, float("nan")])}, r"score of .*hook_post\[1\] is NaN"),
        ({POST0: torch.zeros(2, 2)}, r"floating-point tensor \[d\], got .*\(2, 2\)"),
        ({POST0: torch.tensor([1, 2])}, r"got a torch.int64 tensor of shape \(2,\)"),
        ({POST0: [0.5]}, "got list"),
    ],
)
def test_from_scores_refuses_what_cannot_be_ranked(scores, message):
    with pytest.raises(ValueError, match=message):
        NeuronSet.from_scores(scores, k=1)


# As a set --------------------------------------------------------------------------------------


@given(neurons_lists, neurons_lists)
def test_set_algebra_agrees_with_python_sets_and_keeps_rank(left, right):
    a, b = NeuronSet(left), NeuronSet(right)
    first, second = list(dict.fromkeys(left)), list(dict.fromkeys(right))
    only_second = [neuron for neuron in second if neuron not in first]
    only_first = [neuron for neuron in first if neuron not in second]
    assert list(a) == first
    assert list(a | b) == first + only_second
    assert list(a & b) == [neuron for neuron in first if neuron in second]
    assert list(a - b) == only_first
    assert list(a ^ b) == only_first + only_second
    assert (a <= b) == (set(left) <= set(right))
    assert a.isdisjoint(b) == set(left).isdisjoint(right)
    assert (a | b) == (b | a) == set(left) | set(right)
    assert hash(a | b) == hash(b | a)
    assert all((neuron in a) == (neuron in left) for neuron in left + right)


@given(neurons_lists, st.slices(20))
def test_slices_keep_rank(listed, part):
    unique = list(dict.fromkeys(listed))
    neurons = NeuronSet(listed)
    assert isinstance(neurons[part], NeuronSet)
    assert list(neurons[part]) == unique[part]
    assert [neurons[rank] for rank in range(len(neurons))] == unique


def test_equality_ignores_rank_and_sizes_but_not_neurons():
    a = NeuronSet.from_indices({POST0: [1, 2]}, sizes={POST0: 4})
    b = NeuronSet.from_indices({POST0: [2, 1]})
    assert a == b
    assert {a: "found"}[b] == "found"
    assert a != b[:1]
    assert a != "a set"
    assert list(a) != list(b)


def test_a_set_cannot_be_changed_from_outside():
    neurons = NeuronSet.from_indices({POST0: [1, 2]}, sizes={POST0: 4})
    neurons.indices[POST0][0] = 3
    neurons.masks()[POST0][:] = True
    neurons.sizes[POST0] = 9
    assert written(neurons) == [f"{POST0}[1]", f"{POST0}[2]"]
    assert neurons.sizes == {POST0: 4}
    with pytest.raises(AttributeError):
        neurons.names = ()  # type: ignore[misc]
    with pytest.raises(AttributeError):
        neurons.note = "new"  # type: ignore[attr-defined]


@pytest.mark.usefixtures("unchecked")
def test_a_set_holds_neurons_only():
    with pytest.raises(TypeError, match=r"holds Neurons, got 'blocks.0.x\[1\]'.*Neuron.parse"):
        NeuronSet(["blocks.0.x[1]"])  # type: ignore[list-item]


def test_sets_can_be_copied_and_pickled():
    neurons = NeuronSet.from_indices({POST2: [9, 1]}, sizes={POST2: 12})
    for twin in (copy.deepcopy(neurons), pickle.loads(pickle.dumps(neurons))):
        assert list(twin) == list(neurons)
        assert twin.sizes == neurons.sizes


def test_sizes_follow_operators_and_must_agree():
    a = NeuronSet.from_indices({POST0: [1]}, sizes={POST0: 4, POST2: 5})
    b = NeuronSet.from_indices({POST2: [1]}, sizes={POST2: 5})
    assert a.sizes == {POST0: 4}
    assert (a | b).sizes == {POST0: 4, POST2: 5}
    assert (a ^ b).sizes == {POST0: 4, POST2: 5}
    assert ((a | b) & b).sizes == {POST2: 5}
    other = NeuronSet.from_indices({POST0: [2]}, sizes={POST0: 8})
    with pytest.raises(ValueError, match=r"4 neurons in this set but 8 .* different models"):
        a.__or__(other)
    assert a | {Neuron(POST0, 2)} == NeuronSet.from_indices({POST0: [1, 2]})


# Looking at it ---------------------------------------------------------------------------------


def test_indices_and_names_are_in_layer_order_and_ranked_within():
    neurons = NeuronSet.from_indices({POST10: [4], POST2: [9, 1]})
    assert neurons.names == (POST2, POST10)
    assert {name: index.tolist() for name, index in neurons.indices.items()} == {
        POST2: [9, 1],
        POST10: [4],
    }
    assert all(index.dtype == torch.int64 for index in neurons.indices.values())


def test_masks_from_given_sizes():
    neurons = NeuronSet.from_indices({POST0: [1]})
    assert neurons.masks(SIZES)[POST0].nonzero().tolist() == [[1]]
    with pytest.raises(ValueError, match=r"number of neurons at 'blocks.0.* not known.*Pass sizes"):
        neurons.masks()


def test_filter_by_component_layer_and_site():
    everything = NeuronSet.from_indices({name: [3, 1] for name in NAMES})
    assert everything.filter(component="vision_encoder").names == (VISION,)
    assert set(everything.filter(layer=2).names) == {POST2, VISION, "blocks.2.hook_mlp_out"}
    assert everything.filter(layer=range(1, 11), site="mlp.hook_post", component="language_model") \
        .names == (POST2, POST10)  # fmt: skip
    assert everything.filter(component="projector", layer=0) == NeuronSet()
    assert everything.filter() == everything
    assert written(everything.filter(layer=0)) == [f"{POST0}[3]", f"{POST0}[1]"]


@pytest.mark.usefixtures("unchecked")
def test_count_by_each_key():
    neurons = NeuronSet.from_indices({POST10: [1], VISION: [1, 2], POST2: [4], PROJECTOR: [0]})
    assert neurons.count_by("component") == {
        "language_model": 2,
        "projector": 1,
        "vision_encoder": 2,
    }
    assert list(neurons.count_by("layer").items()) == [(None, 1), (2, 3), (10, 1)]
    assert neurons.count_by("site") == {"mlp.hook_post": 5}
    assert list(neurons.count_by("name")) == [POST2, POST10, PROJECTOR, VISION]
    with pytest.raises(ValueError, match="'component', 'layer', 'site' or 'name', got 'index'"):
        neurons.count_by("index")  # type: ignore[arg-type]


def test_dataframe_has_one_ranked_row_per_neuron():
    frame = NeuronSet.from_indices({PROJECTOR: [3], POST2: [1]}).to_dataframe()
    assert list(frame.columns) == ["rank", "component", "layer", "site", "index", "name"]
    assert frame["rank"].tolist() == [0, 1]
    assert frame["layer"].isna().tolist() == [True, False]
    assert frame.iloc[1].tolist() == [1, "language_model", 2, "mlp.hook_post", 1, POST2]
    assert NeuronSet().to_dataframe().shape == (0, 6)


def test_repr_is_short():
    neurons = NeuronSet.from_indices({"blocks.0.mlp.hook_post": range(5), POST2: range(7)})
    assert repr(neurons) == f"NeuronSet(12 neurons: {POST0} 5, {POST2} 7)"
    assert repr(neurons[:1]) == f"NeuronSet(1 neuron: {POST0} 1)"
    assert repr(NeuronSet()) == "NeuronSet(0 neurons)"
    many = NeuronSet.from_indices({f"blocks.{layer}.hook_x": [0] for layer in range(40)})
    assert repr(many) == (
        "NeuronSet(40 neurons: blocks.0.hook_x 1, blocks.1.hook_x 1, blocks.2.hook_x 1, "
        "... 36 more ..., blocks.39.hook_x 1)"
    )


def test_html_is_escaped_and_short():
    page = NeuronSet.from_indices({"<script>&": range(50)})._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;&amp;" in page
    assert page.count("<tr") == 11


def test_check_names_the_neuron_or_the_nearest_hook_names():
    neurons = NeuronSet.from_indices({POST2: [3, 12]})
    neurons.check(SIZES)
    with pytest.raises(IndexError, match=r"blocks\.2\.mlp\.hook_post\[12\] .*12 .* 0 to 11"):
        neurons.check({POST2: 12})
    with pytest.raises(HookNameError, match=r"Not one of .*'blocks.2.mlp.hook_pst'.*Nearest: bl"):
        NeuronSet.from_indices({"blocks.2.mlp.hook_pst": [1]}).check(SIZES)
    sized = NeuronSet.from_indices({POST2: [3]}, sizes={POST2: 20})
    with pytest.raises(ValueError, match="20 neurons in this set but 40"):
        sized.check(SIZES)


# Controls --------------------------------------------------------------------------------------


@given(neurons_lists, st.integers(0, 2**32))
def test_controls_match_by_name_at_every_rank_and_are_disjoint(listed, seed):
    neurons = NeuronSet(listed)
    control = neurons.sample_control(SIZES, seed=seed)
    assert [neuron.name for neuron in control] == [neuron.name for neuron in neurons]
    assert control.isdisjoint(neurons)
    assert len(control) == len(neurons)
    assert list(control) == list(neurons.sample_control(SIZES, seed=seed))
    control.check(SIZES)


def test_controls_differ_by_seed_and_leave_the_global_state_alone():
    neurons = NeuronSet.from_indices({POST0: range(10)}, sizes={POST0: 1000})
    torch.manual_seed(0)
    state = torch.get_rng_state()
    controls = {neurons.sample_control(seed=seed) for seed in range(20)}
    assert len(controls) == 20
    assert torch.equal(state, torch.get_rng_state())


def test_controls_are_uniform_over_the_rest():
    neurons = NeuronSet.from_indices({POST0: [0, 2]}, sizes={POST0: 6})
    drawn = [n.index for seed in range(600) for n in neurons.sample_control(seed=seed)]
    counts = {index: drawn.count(index) for index in sorted(set(drawn))}
    assert list(counts) == [1, 3, 4, 5]
    assert all(240 < count < 360 for count in counts.values())  # 300 expected, 5 sigma = 61


def test_a_control_needs_enough_neurons_and_sizes():
    neurons = NeuronSet.from_indices({POST0: [0, 1, 2]})
    with pytest.raises(ValueError, match=r"control for 'blocks.0.*3 of its 5 .* leaves 2"):
        neurons.sample_control({POST0: 5})
    with pytest.raises(ValueError, match="not known"):
        neurons.sample_control()
    with pytest.raises(HookNameError):
        neurons.sample_control({POST2: 5})
    assert set(neurons.sample_control({POST0: 6}).indices[POST0].tolist()) == {3, 4, 5}

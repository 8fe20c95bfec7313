"""PCICN's search, against the authors' loop over list entries, and on planted models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.analyses.entries import MODULES, Entry, listed
from tests.analyses.planted import ANSWER, SPIKE, blank, plant_gate, plant_spike, samples
from tests.analyses.planted_tables import down, large_and_small
from tests.conftest import assert_no_hooks
from tests.tiny import Tiny
from vlm_lens import Neuron
from vlm_lens.analyses import collapse, pcicn
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.analyses.entry_scores import EntryScores
from vlm_lens.data import Sample
from vlm_lens.masking import AGREEMENT, OWN_PERPLEXITY, PERPLEXITY_RATIO, Criterion
from vlm_lens.neurons.controls import random_neurons

RED = " ".join(["red"] * 12)
"""What the planted models are sure of."""

MODELS = ["gate", "large and small", "spike", "blank"]


@cache
def built(name: str) -> Tiny:
    if name == "large and small":
        return large_and_small()
    tiny = blank()
    if name != "blank":
        {"gate": plant_gate, "spike": plant_spike}[name](tiny)
    return tiny


@cache
def text_of(name: str) -> str:
    """A text that the model would write itself."""
    return built(name).model.generate("what color ?", max_new_tokens=12, do_sample=False)


@cache
def scored(name: str) -> EntryScores:
    return pcicn.score(built(name).model, text_of(name), n_noisy=12)


# The authors' loop --------------------------------------------------------------------------------


@contextmanager
def zeroed(tiny: Tiny, entries: list[Entry]) -> Iterator[None]:
    """Zeroes an entry's channel in its module's output, at all positions."""
    handles = []
    modules = {site: path for path, site in MODULES.items()}
    for name, _position, channel, _score in entries:
        _, layer, site = name.split(".", 2)
        block = tiny.hf.model.language_model.layers[int(layer)]

        def zero(_module, _args, output, channel=channel):
            output = output.clone()
            output[..., channel] = 0
            return output

        handles.append(block.get_submodule(modules[site]).register_forward_hook(zero))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def perplexity(tiny: Tiny, text: str, entries: list[Entry]) -> float:
    ids = tiny.model.to_tokens(text)
    with zeroed(tiny, entries):
        return math.exp(float(tiny.hf(input_ids=ids, labels=ids).loss))


def authors_n(tiny: Tiny, text: str, entries: list[Entry], *, epsilon: float) -> int | None:
    """How many of the first entries it takes, one more at a time."""
    clean = perplexity(tiny, text, [])
    for n in range(1, len(entries) + 1):
        if math.log10(perplexity(tiny, text, entries[:n]) / clean) >= epsilon:
            return n
    return None


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "epsilon"),
    [("gate", 1.0), ("gate", 0.5), ("large and small", 1.0), ("spike", 0.5), ("spike", 0.1)],
)
def test_it_counts_entries_as_the_authors_do(name: str, epsilon: float):
    tiny, text, scores = built(name), text_of(name), scored(name)
    expected = authors_n(tiny, text, listed(scores)[:150], epsilon=epsilon)
    assert expected is not None
    found = pcicn.find_critical(tiny.model, text, scores, epsilon=epsilon)
    assert found.k is not None
    assert found.parameters["n_entries"] == expected
    distinct = {(name, channel) for name, _, channel, _ in listed(scores)[:expected]}
    assert found.k == len(distinct)
    assert {(neuron.name, neuron.index) for neuron in found.neurons} == distinct
    assert found.notes[0] == (
        f"k = {found.k} channels are the first {expected} entries of the list"
    )
    assert_no_hooks(tiny.model)


def test_entries_of_the_same_channel_make_the_counts_differ():
    """The first channel moves most at every position of the text: 15 entries are 3 channels."""
    found = pcicn.find_critical(
        built("large and small").model, text_of("large and small"), scored("large and small")
    )
    assert found.k == 3
    assert found.parameters["n_entries"] > found.k


@pytest.mark.full
def test_the_curve_is_that_of_the_authors_perplexities():
    tiny, text, scores = built("spike"), text_of("spike"), scored("spike")
    entries = listed(scores)
    found = pcicn.find_critical(tiny.model, text, scores, max_k=30, also_at=[3, 7])
    assert found.curve[0].metrics["perplexity"] == pytest.approx(perplexity(tiny, text, []))
    for measured in found.curve:
        expected = perplexity(tiny, text, entries[: scores.n_entries(measured.k)])
        assert measured.metrics["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert found.k is None  # within 30, as the loop says too
    assert authors_n(tiny, text, entries[: scores.n_entries(30)], epsilon=1.0) is None
    assert found.parameters["n_entries"] is None
    assert "no collapse within 30 neurons" in found.notes


def test_all_that_is_masked_one_at_a_time_gives_the_same():
    tiny, text = built("large and small"), text_of("large and small")
    fast = pcicn.find_critical(tiny.model, text, scored("large and small"))
    slow = pcicn.find_critical(
        tiny.model, text, scored("large and small"), exhaustive=True, reuse=False, rows=1
    )
    assert (fast.k, fast.stages.onset) == (slow.k, slow.stages.onset)
    assert [measured.k for measured in slow.curve][:4] == [0, 1, 2, 3]


# Planted models -----------------------------------------------------------------------------------


def test_a_gate_is_ranked_first_and_is_all_it_takes():
    found = pcicn.find_critical(built("gate").model, text_of("gate"), scored("gate"))
    assert text_of("gate") == RED
    assert list(found.neurons) == [down(2, ANSWER)]
    assert found.curve[0].answers != found.curve[1].answers
    assert found.stages.onset == 1


def test_a_massive_activation_is_ranked_first_and_is_all_it_takes():
    """Perplexity is of the model's own answers, about images too."""
    found = pcicn.find_critical(built("spike").model, samples(), scored("spike"), max_new_tokens=4)
    assert list(found.neurons) == [down(0, SPIKE)]
    assert found.parameters["target"] == "own"
    assert found.parameters["n_entries"] == 1


def test_two_ways_to_the_answer_take_a_neuron_of_each():
    """Two units write to a channel each: the smallest prefix with both ways in it collapses."""
    found = pcicn.find_critical(
        built("large and small").model, text_of("large and small"), scored("large and small")
    )
    ways = [
        {Neuron(f"blocks.2.{site}", unit) for site in ("mlp.hook_pre", "mlp.hook_pre_linear")}
        | {Neuron("blocks.2.mlp.hook_act", unit), down(2, channel)}
        for unit, channel in ((3, SPIKE), (5, ANSWER))
    ]
    ranking = list(found.ranking)
    smallest = 1 + max(min(ranking.index(n) for n in way if n in ranking) for way in ways)
    assert found.k == smallest == 3
    assert set(ranking[:2]) <= ways[0]
    assert ranking[2] in ways[1]


def test_without_plants_it_takes_more_and_at_random_far_more():
    blank_k = pcicn.find_critical(
        built("blank").model, text_of("blank"), scored("blank"), max_k=128
    ).k
    assert blank_k is None or blank_k > 50
    drawn = collapse.find_critical(
        built("gate").model,
        [Sample(images=[], text=text_of("gate"))],
        random_neurons(scored("gate").neurons, avoid="never"),
        target="text",
        collapse=(Criterion(PERPLEXITY_RATIO, at_least=10.0),),
        max_k=128,
    )
    assert drawn.k is None or drawn.k > 50


# What is measured ---------------------------------------------------------------------------------


def test_texts_are_their_own_target_and_samples_the_models_answers():
    model, scores = built("gate").model, scored("gate")
    text, sample = text_of("gate"), Sample(images=[], text="is two red ?", answer="blue")
    options: Any = {"max_k": 2, "max_new_tokens": 3}
    for asked, target in (
        (text, "text"),
        ([text, "what is red"], "text"),
        (sample, "own"),
        ([text, sample], "own"),
    ):
        found = pcicn.find_critical(model, asked, scores, **options)
        assert found.parameters["target"] == target
    assert found.prompts == (text, sample.text)
    assert found.references == (None, "blue")
    given = pcicn.find_critical(model, sample, scores, target="answer", **options)
    assert given.parameters["target"] == "answer"
    assert given.curve[0].metrics["agreement"] == 0  # "blue" is not what it says
    own = pcicn.find_critical(model, text, scores, target="own", **options)
    assert own.curve[0].metrics["agreement"] == 1


def test_perplexity_of_a_text_is_of_all_its_tokens():
    model, text = built("gate").model, text_of("gate")
    both = [text, "what is the color of red"]
    found = pcicn.find_critical(model, both, scored("gate"), max_k=2)
    losses = []
    with torch.no_grad():
        for each in both:
            losses += model(each, return_type="loss", loss_per_token=True)[0].tolist()
    assert len(losses) == 12 + 6
    expected = math.exp(sum(losses) / len(losses))
    assert found.curve[0].metrics["perplexity"] == pytest.approx(expected, rel=1e-5)


def table_of(found: CriticalNeurons) -> pd.DataFrame:
    return found.table().astype({"collapsed": "boolean"})


@pytest.mark.full
@pytest.mark.parametrize("name", ["gate", "large and small"])
def test_results_do_not_depend_on_batches_and_padding(name: str):
    """Texts of different length are padded, on the left for generation, unless they are alone."""
    model, scores = built(name).model, scored(name)
    texts = [RED, "what color ? red red", "is the circle left ? red red red red", "red red"]
    one, four, many = (
        pcicn.find_critical(
            model, texts, scores, epsilon=0.5, batch_size=n, max_k=40, also_at=[5, 20]
        )
        for n in (1, 3, 16)
    )
    assert one.k is not None
    for other in (four, many):
        assert (other.k, other.stages.onset) == (one.k, one.stages.onset)
        assert other.parameters["n_entries"] == one.parameters["n_entries"]
        pd.testing.assert_frame_equal(table_of(other), table_of(one), rtol=1e-4)
        assert [m.answers for m in other.curve] == [m.answers for m in one.curve]


def test_results_are_the_same_from_run_to_run():
    model, text = built("large and small").model, text_of("large and small")
    before = torch.get_rng_state()
    found = []
    for _ in range(2):
        scores = pcicn.score(model, text, n_noisy=5, seed=9)
        found.append(pcicn.find_critical(model, text, scores))
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(found[0].table(), found[1].table())
    assert list(found[0].ranking) == list(found[1].ranking)
    same = [
        {k: v for k, v in each.parameters.items() if k not in ("date", "score")} for each in found
    ]
    assert same[0] == same[1]


# Options ------------------------------------------------------------------------------------------


def test_options_reach_the_search(tmp_path: Path):
    told: list[int] = []
    found = pcicn.find_critical(
        built("gate").model,
        text_of("gate"),
        scored("gate"),
        epsilon=0.2,
        max_k=9,
        metrics=(OWN_PERPLEXITY,),
        degraded=Criterion(AGREEMENT, at_most=0.5),
        also_at=[4],
        probes=3,
        first_token=False,
        fill="mean",
        max_new_tokens=2,
        checkpoint=tmp_path,
        on_measure=lambda measured: told.append(measured.k),
        batch_size=2,
    )
    parameters = found.parameters
    expected = {
        "epsilon": 0.2,
        "collapse": ["perplexity_ratio >= 1.58489"],
        "degraded": "agreement <= 0.5",
        "metrics": ["own_perplexity"],
        "max_k": 9,
        "probes": 3,
        "first_token": False,
        "fill": "mean",
        "max_new_tokens": 2,
        "batch_size": 2,
        "target": "text",
        "score": scored("gate").parameters,
    }
    assert {name: parameters[name] for name in expected} == expected
    assert found.method == "PCICN"
    assert len(found.ranking) == 9
    assert set(told) == {measured.k for measured in found.curve} >= {0, 4}
    assert "own_perplexity" in found.metrics
    assert (tmp_path / "search.json").exists()


def test_criteria_may_be_others():
    found = pcicn.find_critical(
        built("gate").model,
        text_of("gate"),
        scored("gate"),
        collapse=(Criterion(AGREEMENT, at_most=0.0),),
    )
    assert found.parameters["collapse"] == ["agreement <= 0"]
    assert found.k == 1


def test_an_option_that_does_not_exist_is_refused():
    with pytest.raises(TypeError, match="most_k"):
        pcicn.find_critical(built("gate").model, "red", scored("gate"), most_k=3)


def test_bad_requests_are_refused(unchecked: None):
    model, scores = built("gate").model, scored("gate")
    for epsilon in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="epsilon"):
            pcicn.find_critical(model, "red", scores, epsilon=epsilon)
    empty = pcicn.score(model, "red red", n_noisy=2, threshold=1e9)
    with pytest.raises(ValueError, match="list of entries to mask, got an empty one"):
        pcicn.find_critical(model, "red", empty)
    with pytest.raises(ValueError, match="at least one sample"):
        pcicn.find_critical(model, [], scores)
    with pytest.raises(ValueError, match="answer"):
        pcicn.find_critical(model, Sample(images=[], text="red"), scores, target="answer")
    with pytest.raises(ValueError, match="max_k"):
        pcicn.find_critical(model, "red", scores, max_k=0)


def test_a_result_survives_a_disk(tmp_path: Path):
    found = pcicn.find_critical(
        built("large and small").model, text_of("large and small"), scored("large and small")
    )
    found.save(tmp_path)
    again = CriticalNeurons.load(tmp_path)
    pd.testing.assert_frame_equal(again.table(), found.table())
    for name in ("method", "k", "stages", "is_monotone", "prompts", "references", "notes"):
        assert getattr(again, name) == getattr(found, name)
    assert again.parameters == found.parameters
    assert (again.sizes, again.matrices) == (found.sizes, found.matrices)
    assert list(again.ranking) == list(found.ranking)
    assert again.ranking.sizes == found.ranking.sizes
    assert [m.answers for m in again.curve] == [m.answers for m in found.curve]
    pd.testing.assert_frame_equal(again.histogram("matrix"), found.histogram("matrix"))

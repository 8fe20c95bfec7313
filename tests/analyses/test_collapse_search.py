"""What a search measures besides the k it looks for: overflows, checkpoints, and over a bridge."""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.analyses.collapse_cases import (
    CASES,
    PLANTS,
    SAMPLES,
    SIZES,
    TOKENS,
    Case,
    found_in,
    others,
    planted,
    ranked,
)
from tests.conftest import assert_no_hooks
from vlm_lens import HookedVLM, NeuronSet
from vlm_lens.analyses.collapse import find_collapse
from vlm_lens.analyses.collapse_search import SearchOptions
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.masking import (
    ACCURACY,
    AGREEMENT,
    COLLAPSE,
    OWN_PERPLEXITY,
    PERPLEXITY_RATIO,
    Criterion,
)
from vlm_lens.masking.measurement import Measurement
from vlm_lens.neurons.neuron import Neuron
from vlm_lens.passes.batch import make_batches
from vlm_lens.report.words import headline


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    yield
    for plant in PLANTS:
        assert_no_hooks(planted(plant).model)


# What is not finite -------------------------------------------------------------------------------


def overflowing() -> tuple[HookedVLM, NeuronSet]:
    """In bfloat16, a unit of the projector without which another one overflows."""
    hf = copy.deepcopy(planted("gate").hf).to(torch.bfloat16)
    projector = hf.model.multi_modal_projector
    with torch.no_grad():
        projector.linear_1.weight[:2] = 0
        projector.linear_1.bias[:2] = 1e19
        projector.linear_2.weight[5] = 0
        projector.linear_2.weight[5, 0] = 3e19
        projector.linear_2.weight[5, 1] = -3e19
        projector.linear_2.bias[5] = 1.5e38
    chosen = [*others(9), Neuron("projector.mlp.hook_pre", 1), *others(20)[9:]]
    return HookedVLM(hf, processor=planted("gate").processor), ranked(*chosen)


@pytest.mark.full
@pytest.mark.parametrize("exhaustive", [True, False])
def test_what_is_not_finite_is_a_collapse_and_noted(exhaustive: bool, tmp_path: Path):
    model, ranking = overflowing()
    pictured = SAMPLES[:3]
    made = make_batches(model, pictured, max_new_tokens=TOKENS)
    options = SearchOptions(
        max_new_tokens=TOKENS, exhaustive=exhaustive, metrics=[OWN_PERPLEXITY], checkpoint=tmp_path
    )
    for _ in range(2):  # from the checkpoint too
        found = find_collapse(model, made, ranking, method="overflow", options=options)
        assert found.k == 10
        at = {measured.k: measured for measured in found.curve}
        assert at[10].metrics["perplexity"] == math.inf
        assert at[10].metrics["own_perplexity"] == math.inf
        assert at[9].metrics["perplexity"] < 10
        [note] = [note for note in found.notes if "not finite" in note]
        assert "k = 10" in note
        assert CriticalNeurons.load(_saved(found, tmp_path / "result")).curve == found.curve


def _saved(found: CriticalNeurons, folder: Path) -> Path:
    found.save(folder)
    return folder


def test_a_model_that_is_broken_before_anything_is_masked_is_said_so():
    model, ranking = overflowing()
    with torch.no_grad():
        model.hf_model.model.multi_modal_projector.linear_2.weight[5, 1] = 0
    made = make_batches(model, SAMPLES[:2], max_new_tokens=TOKENS)
    collapse_at = [Criterion(PERPLEXITY_RATIO, at_least=10.0)]
    options = SearchOptions(max_new_tokens=TOKENS, collapse=collapse_at)
    found = find_collapse(model, made, ranking, method="broken", options=options)
    assert found.k is None
    assert found.collapsed_before
    assert any("the clean model meets the criteria of collapse" in note for note in found.notes)
    assert "collapsed before anything is masked" in repr(found)
    assert headline(found).endswith("counts as collapsed with nothing masked")
    assert not [note for note in found.notes if "plain run" in note]


# Reproducible -------------------------------------------------------------------------------------


def without_date(found: CriticalNeurons) -> CriticalNeurons:
    return replace(found, parameters={**found.parameters, "date": None})


def same(found: CriticalNeurons, other: CriticalNeurons) -> bool:
    fields = without_date(found).__dict__, without_date(other).__dict__
    rankings = [list(f["ranking"]) for f in fields]
    return fields[0] == fields[1] and rankings[0] == rankings[1]


@pytest.mark.full
def test_a_second_run_measures_the_same():
    case = CASES["group among others"]
    assert same(found_in(case), found_in(case))


def test_parameters_say_how_it_was_found():
    found = found_in(CASES["gate, first"], max_k=10, collapse=COLLAPSE[:1], probes=3)
    stated = {
        "max_k": 10,
        "collapse": ["perplexity_ratio >= 10"],
        "degraded": "agreement <= 0.95",
        "first_token": True,
        "probes": 3,
        "exhaustive": False,
        "max_new_tokens": TOKENS,
        "class": "LlavaForConditionalGeneration",
        "dtype": "float32",
    }
    assert stated.items() <= found.parameters.items()
    assert len(found.ranking) == 10


# Checkpoints --------------------------------------------------------------------------------------


@contextmanager
def counted(model: Any) -> Iterator[Counter[str]]:
    """How often the Hugging Face model runs."""
    counts: Counter[str] = Counter()

    def count(_module: Any, _args: Any, _kwargs: Any) -> None:
        counts["forwards"] += 1

    handle = model.hf_model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


@pytest.mark.full
@pytest.mark.parametrize("stop", [1, 9])
def test_an_interrupted_search_goes_on_where_it_was(tmp_path: Path, stop: int):
    case = CASES["group among others"]
    whole: list[Measurement] = []
    model = planted(case.plant).model
    expected = found_in(case, on_measure=whole.append)
    before: list[Measurement] = []

    def interrupt(measurement: Measurement) -> None:
        before.append(measurement)
        if len(before) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found_in(case, checkpoint=tmp_path, on_measure=interrupt)
    after: list[Measurement] = []
    found = found_in(case, checkpoint=tmp_path, on_measure=after.append)
    assert same(found, expected)
    assert [*before, *after] == whole, "each is measured once"
    # With everything measured, all that runs is the check of k and its predecessor.
    again: list[Measurement] = []
    with counted(model) as counts:
        assert same(found_in(case, checkpoint=tmp_path, on_measure=again.append), expected)
    assert again == []
    assert 0 < counts["forwards"] <= 3 + TOKENS * 2


@pytest.mark.full
def test_the_measurements_of_another_search_are_refused(tmp_path: Path):
    case = CASES["gate, late"]
    found_in(case, checkpoint=tmp_path)
    changed = [
        lambda: found_in(Case("gate", case.ranking[::-1]), checkpoint=tmp_path),
        lambda: found_in(case, checkpoint=tmp_path, first_token=False),
        lambda: found_in(case, checkpoint=tmp_path, collapse=COLLAPSE[:1]),
        lambda: found_in(case, checkpoint=tmp_path, metrics=[ACCURACY]),
        lambda: found_in(case, checkpoint=tmp_path, max_new_tokens=TOKENS + 1),
        lambda: found_in(
            case, checkpoint=tmp_path, fill={n: torch.ones(d) for n, d in SIZES.items()}
        ),
        lambda: found_in(Case("spike", case.ranking), checkpoint=tmp_path),
        lambda: find_collapse(
            planted("gate").model,
            make_batches(planted("gate").model, SAMPLES[:3], max_new_tokens=TOKENS),
            case.neurons,
            method="planted",
            options=SearchOptions(max_new_tokens=TOKENS, checkpoint=tmp_path),
        ),
    ]
    for search in changed:
        with pytest.raises(ValueError, match=r"the measurements of another search.*search\.json"):
            search()
    assert found_in(case, checkpoint=tmp_path, width=2, rows=3, batch_size=1).k == 21


# TransformerBridge --------------------------------------------------------------------------------

BRIDGED = [Criterion(PERPLEXITY_RATIO, at_least=10.0), Criterion(AGREEMENT, at_most=0.3)]


@cache
def bridge(plant: str) -> Any:
    """The same weights under TransformerBridge."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.model_bridge.sources.transformers import helpers

    # The bridge pip-installs torchvision (and with it another torch) when it thinks it needs it.
    os.environ["PIP_NO_INDEX"] = "1"
    helpers._ensure_torchvision = lambda: False
    hf = copy.deepcopy(planted(plant).hf)
    hf.set_attn_implementation("eager")
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config)


def in_text(name: str) -> Case:
    """A case with the language model's neurons only, which the bridge has hook points for."""
    case = CASES[name]
    return replace(case, ranking=tuple(n for n in case.ranking if n.component == "language_model"))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["gate, late", "group among others", "spike, channel"])
@pytest.mark.parametrize("first_token", [True, False])
def test_the_search_over_transformer_bridge_finds_the_same(name: str, first_token: bool):
    case = replace(in_text(name), first_token=first_token)
    ours = found_in(case, collapse=BRIDGED)
    theirs = found_in(case, collapse=BRIDGED, model=bridge(case.plant), width=2)
    assert theirs.k == ours.k
    assert (ours.k is not None) == (name != "spike, channel" or first_token)
    at = {m.k: m for m in theirs.curve}
    for measured in ours.curve:
        if measured.k in at:
            for metric, value in measured.metrics.items():
                assert at[measured.k].metrics[metric] == pytest.approx(value, rel=1e-4), metric


@pytest.mark.parametrize("options", [{}, {"metrics": [ACCURACY]}, {"metrics": [OWN_PERPLEXITY]}])
def test_masked_answers_over_transformer_bridge_are_refused_before_anything_runs(
    options: dict[str, Any],
):
    case = in_text("gate, late")
    told: list[Measurement] = []
    if options:
        options = {**options, "collapse": BRIDGED}
    with pytest.raises(
        TypeError, match="measured on masked answers.*perplexity and agreement.*use a HookedVLM"
    ):
        found_in(case, model=bridge(case.plant), on_measure=told.append, **options)
    assert told == []

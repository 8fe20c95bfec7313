"""Types of neurons against the slow way, on plants, and through interruptions."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.analyses.planted_modality import planted
from tests.analyses.slow_types import slow_types
from tests.conftest import assert_no_hooks
from tests.statistics.slow import MODULES, N_NEW, built, samples_of
from vlm_lens.analyses.neuron_types import classify
from vlm_lens.analyses.neuron_types_labels import LABELS
from vlm_lens.analyses.neuron_types_result import NeuronTypes
from vlm_lens.data import Sample
from vlm_lens.passes import SamplesLeftOutWarning

TOP = {"top_samples": 3, "max_new_tokens": N_NEW}
SITES = {name: [s for s in MODULES[name] if s.startswith("blocks")] for name in MODULES}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"comparison": ">", "n_v": 1, "n_t": 1},
    {"T_v": 4.0, "T_t": 1.0, "n_v": 2, "n_t": 1},
    {"text_tokens": "text", "n_t": 3},
    {"maximum_over": "any", "text_tokens": "answer"},
    {"answers": "given", "top_samples": 50, "T_v": 3.0},
]


def typed(name: str, **options: Any) -> NeuronTypes:
    return classify(built(name), samples_of(name), sites=SITES[name], **{**TOP, **options})


# Against the slow way -----------------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_is_what_the_slow_way_gives(name: str, options: dict[str, Any]) -> None:
    expected = slow_types(name, samples_of(name), **{**TOP, **options})
    for batch_size in (1, 3):
        found = typed(name, batch_size=batch_size, **options)
        assert list(found.sites) == SITES[name]
        for site, slow in expected.items():
            assert found.sites[site].counts.T.tolist() == slow.counts
            torch.testing.assert_close(
                found.sites[site].maxima.double(), slow.maxima, rtol=1e-5, atol=1e-7
            )
            torch.testing.assert_close(found.sites[site].tails, slow.tails, rtol=1e-5, atol=1e-10)


@pytest.mark.full
@pytest.mark.parametrize("comparison", [">=", ">"])
def test_other_thresholds_are_those_of_their_own_run(comparison: Any) -> None:
    grid = {"T_v": (1.0, 5.0), "n_t": (1, 2, 3)}
    found = typed("llava", grid=grid, comparison=comparison).sensitivity()
    assert len(found) == (1 + 2) * 3
    assert found.iloc[0][["T_v", "n_v", "T_t", "n_t"]].tolist() == [2.0, 4, 3.0, 2]
    assert found.iloc[0]["changed"] == 0
    first = typed("llava", grid={}, comparison=comparison)
    for row in found.to_dict("records"):
        options = {str(key): row[key] for key in ("T_v", "n_v", "T_t", "n_t")}
        own = typed("llava", grid={}, comparison=comparison, **options)
        table = own.table().set_index("label")
        for label in LABELS:
            assert row[label] == pytest.approx(table.loc[label, "share"])
        pairs = zip(own.sites.values(), first.sites.values(), strict=True)
        changed = torch.cat([one.labels != other.labels for one, other in pairs])
        assert row["changed"] == pytest.approx(float(changed.double().mean()))


# Plants -------------------------------------------------------------------------------------------


@cache
def plants() -> Any:
    return planted(n=72)


@pytest.mark.full
def test_the_planted_neurons_get_their_types_and_more_than_by_chance() -> None:
    there = plants()
    found = classify(
        there.model, there.samples, top_samples=24, answers="given", batch_size=36, grid={}
    )
    expected = {"image": "visual", "text": "text", "both": "multi-modal"}
    for plant, label in expected.items():
        neuron = getattr(there, plant)
        assert neuron in found.neurons(label), plant
        assert neuron in found.neurons(label, significant=True), plant


def test_chance_explains_what_does_not_depend_on_the_kind_of_token() -> None:
    """Activations are replaced by noise that is the same in both passes, and nothing else."""
    model, name = built("llava"), "blocks.1.mlp.hook_act"

    def noise(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        uniform = (torch.sin(tensor * 12345.678) * 43758.5453).frac().abs()
        return uniform**6  # mostly small, now and then large

    samples = [sample for sample in samples_of("llava") if sample.images] * 8
    samples = [Sample(one.images, f"{one.text} {'left ' * i}") for i, one in enumerate(samples)]
    with model.hooks([(name, noise)]):
        found = classify(
            model, samples, sites=name, top_samples=32, max_new_tokens=8, n_v=2, n_t=1, T_v=2.5
        )
    assert not found.is_significant(name).any()
    every = found.sites[name].tails
    # p-values of discrete tests: at most a share x of them is x or less.
    for x in (0.01, 0.05, 0.2):
        assert (every <= x).double().mean() <= x + 0.03
    assert len(found.neurons("visual")) + len(found.neurons("multi-modal")) > 10


# Results ------------------------------------------------------------------------------------------


def test_tables_agree_with_each_other() -> None:
    found = typed("llava")
    frame, table = found.to_dataframe(), found.table().set_index("label")
    assert len(frame) == 3 * 64
    assert table["neurons"].sum() == len(frame)
    for label in LABELS:
        its = frame[frame["label"] == label]
        assert table.loc[label, "neurons"] == len(its)
        neurons = found.neurons(label)
        assert len(neurons) == len(its)
        shares = [found.sites[n.name].shares[LABELS.index(label), n.index] for n in neurons]
        assert shares == sorted(shares, reverse=True)
        confident = found.neurons(label, high_confidence=True)
        assert table.loc[label, "high_confidence"] == len(confident)
        assert set(confident) <= set(neurons)
        significant = found.neurons(label, significant=True)
        assert table.loc[label, "significant"] == len(significant)
    layers = found.by_layer()
    assert layers["layer"].tolist() == [0, 1, 2]
    torch.testing.assert_close(
        torch.tensor(layers[list(LABELS)].to_numpy()).sum(1), torch.ones(3, dtype=torch.float64)
    )
    few = found.by_layer(high_confidence=True)
    assert (few[list(LABELS)].to_numpy() <= layers[list(LABELS)].to_numpy()).all()


def test_of_equal_shares_the_first_label_counts() -> None:
    found = typed("llava", answers="given", top_samples=2)
    for site in found.sites.values():
        for counts, label in zip(site.counts.T.tolist(), site.labels.tolist(), strict=True):
            assert label == counts.index(max(counts))


def test_saved_and_loaded(tmp_path: Path) -> None:
    found = typed("llava")
    found.save(tmp_path)
    again = NeuronTypes.load(tmp_path)
    assert repr(again) == repr(found)
    assert again.parameters == found.parameters
    assert again.to_dataframe().equals(found.to_dataframe())
    assert again.sensitivity().equals(found.sensitivity())
    for name in ("T_v", "n_v", "T_t", "n_t", "comparison", "visual_tokens", "text_tokens", "grid"):
        assert name in again.parameters
    (tmp_path / "types.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot read"):
        NeuronTypes.load(tmp_path)


def test_an_unknown_label(unchecked) -> None:
    with pytest.raises(ValueError, match="expected a label of"):
        typed("llava").neurons("video")  # type: ignore[arg-type]


# Interruptions and bad data -----------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_resumes_to_the_identical_result(tmp_path: Path, after: int) -> None:
    seen: list[tuple[int, int | None]] = []

    def stop(done: int, total: int | None) -> None:
        seen.append((done, total))
        if len(seen) == after:
            raise KeyboardInterrupt

    options = {"batch_size": 2, "checkpoint": tmp_path, "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        typed("llava", on_batch=stop, **options)
    assert_no_hooks(built("llava"))
    resumed, whole = typed("llava", on_batch=stop, **options), typed("llava", batch_size=2)
    assert seen == [(n, 6) for n in range(1, 7)]
    for name, site in whole.sites.items():
        for key in ("counts", "maxima", "tails"):
            assert torch.equal(getattr(site, key), getattr(resumed.sites[name], key))
    assert resumed.sensitivity().equals(whole.sensitivity())


def test_another_setting_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    typed("llava", checkpoint=tmp_path)
    with pytest.raises(ValueError, match="another run: its T_v is 2.0, but now it is 1.0"):
        typed("llava", checkpoint=tmp_path, T_v=1.0)


def test_samples_that_cannot_be_used_have_no_say() -> None:
    good = samples_of("llava")
    bad = Sample([], " ".join(["left"] * 200), answer="red")
    with pytest.warns(SamplesLeftOutWarning, match="1 of 6 samples"):
        found = classify(
            built("llava"),
            [*good[:2], bad, *good[2:]],
            sites=SITES["llava"],
            answers="given",
            top_samples=3,
        )
    assert "context holds" in found.parameters["left_out"]["2"]
    expected = typed("llava", answers="given")
    for name, site in expected.sites.items():
        assert torch.equal(found.sites[name].counts, site.counts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_samples": 0}, "top_samples of at least 1"),
        ({"T_v": 10.0}, "T_v from 0 to below 10"),
        ({"T_t": -1.0}, "T_t from 0 to below 10"),
        ({"n_v": 0}, "whole number n_v of at least 1"),
        ({"grid": {"n_t": [1.5]}}, "whole number n_t"),
        ({"grid": {"n_w": [1]}}, "expected a grid of"),
        ({"comparison": "<"}, "a comparison '>=' or '>'"),
        ({"visual_tokens": "image", "text_tokens": "any"}, "overlap"),
        ({"high_confidence": 1.5}, "high_confidence from 0"),
        ({"alpha": -0.1}, "alpha from 0"),
        ({"batch_size": 0}, "batch_size of at least 1"),
    ],
)
def test_bad_arguments_before_anything_runs(
    options: dict[str, Any], message: str, monkeypatch, unchecked
) -> None:
    monkeypatch.setattr(import_module("vlm_lens.passes.one_pass"), "make_batch", None)
    with pytest.raises(ValueError, match=message):
        typed("llava", **options)


def test_where_a_kind_of_token_never_occurs() -> None:
    texts = [Sample([], "what color ?", answer="red")]
    with pytest.raises(ValueError, match="no tokens of type 'image' at 'blocks.0.mlp.hook_act'"):
        classify(built("llava"), texts, answers="given")
    with pytest.raises(ValueError, match="no tokens of type 'answer text'"):
        typed("llava", answers=None)
    with pytest.raises(ValueError, match="no tokens of type 'answer text' at 'vision_encoder"):
        classify(built("llava"), samples_of("llava"), component="vision_encoder", **TOP)

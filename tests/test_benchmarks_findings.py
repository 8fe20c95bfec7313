"""What findings are made of: cells, seeds, controls, files. What was found is in test_readme.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from benchmarks import (
    findings,
    findings_explanations,
    findings_modalities,
    findings_tables,
    findings_types,
)
from benchmarks.findings_random import random_model
from benchmarks.findings_tables import markdown, over_seeds, together
from vlm_lens import HookedVLM
from vlm_lens.analyses import miner
from vlm_lens.analyses.neuron_types_labels import SiteTypes
from vlm_lens.analyses.neuron_types_result import NeuronTypes


@pytest.fixture(scope="module")
def model() -> HookedVLM:
    return HookedVLM.from_pretrained("shapes-llava")


# Tables -----------------------------------------------------------------------------------------


def test_cells_say_how_far_seeds_are_apart():
    rows = [
        {"what": "a|b", "n": 3, "share": [0.5, 0.25, 0.75], "of": 2.0},
        {"what": "c", "n": None, "share": [1.0, 0.999, 1.0], "of": float("nan")},
        {"what": "d", "n": 0, "share": [41.3, 40, 42], "of": 0.125},
        {"what": "e", "n": 1, "share": None, "of": 1.0},
    ]
    assert markdown(rows).splitlines() == [
        "| what | n | share | of |",
        "| --- | ---: | ---: | ---: |",
        r"| a\|b | 3 | 0.50 (0.25 to 0.75) | 2 |",
        "| c | - | 1.00 | - |",
        "| d | 0 | 41 (40 to 42) | 0.12 |",
        "| e | 1 | - | 1 |",
    ]


def test_rows_of_all_seeds_are_put_together_by_what_they_are_about():
    frames = [
        pd.DataFrame({"layer": [0, 1], "of": ["a", "b"], "score": [s, 10.0]}) for s in (1.0, 4.0)
    ]
    frames[1].loc[1, "score"] = float("nan")  # what one seed lacks does not count
    for frame in frames:
        frame["none"] = float("nan")
    assert together(frames, ["layer", "of"]) == [
        {"layer": 0, "of": "a", "score": [2.5, 1.0, 4.0], "none": None},
        {"layer": 1, "of": "b", "score": [10.0, 10.0, 10.0], "none": None},
    ]


def test_tables_go_through_json_unchanged():
    frame = pd.DataFrame({"layer": [0], "score": [0.1], "none": [float("nan")]})
    rows = together([frame], ["layer"])
    assert markdown(json.loads(json.dumps(rows))) == markdown(rows)


# The script -------------------------------------------------------------------------------------


def test_a_group_alone_leaves_the_others_as_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def group(value: int) -> SimpleNamespace:
        return SimpleNamespace(SETTINGS={"n": value}, tables=lambda _: {"one": [{"found": value}]})

    out = tmp_path / "findings.json"
    monkeypatch.setattr(findings.torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(findings, "GROUPS", {"first": group(1), "second": group(2)})
    findings.main(["--out", str(out)])
    before = json.loads(out.read_text())
    monkeypatch.setattr(findings, "GROUPS", {"first": group(3), "second": group(4)})
    findings.main(["--only", "first", "--out", str(out)])
    after = json.loads(out.read_text())
    assert list(after) == ["first", "second"]
    assert after["second"] == before["second"]
    assert after["first"]["tables"] == {"one": [{"found": 3}]}
    assert after["first"]["settings"] == {"n": 3}
    assert "torch" in after["first"]["versions"]
    assert findings.stored_tables(out) == {
        "first: one": [{"found": 3}],
        "second: one": [{"found": 2}],
    }
    assert "### first: one\n\n| found |\n| ---: |\n| 3 |" in capsys.readouterr().out.replace(
        "| --- |", "| ---: |"
    )


def test_an_unknown_group_is_refused(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        findings.main(["--only", "nothing"])
    assert "invalid choice" in capsys.readouterr().err


# The control ------------------------------------------------------------------------------------


def test_random_weights_are_those_of_the_seed_in_the_same_architecture(model: HookedVLM):
    one, same, other = (random_model(seed).hf_model.state_dict() for seed in (0, 0, 1))
    trained = model.hf_model.state_dict()
    assert {n: t.shape for n, t in one.items()} == {n: t.shape for n, t in trained.items()}
    name = next(name for name in one if name.endswith("gate_proj.weight"))
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], trained[name])


# Modalities -------------------------------------------------------------------------------------


@pytest.mark.full
def test_each_seed_gives_every_table_of_modalities(
    model: HookedVLM, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(findings_modalities, "SEEDS", (0,))
    for name, n in {"N_SCORED": 2, "N_TESTED": 3, "N_STATES": 3}.items():
        monkeypatch.setattr(findings_modalities, name, n)
    monkeypatch.setattr(findings_modalities, "OPTIONS", {"batch_size": 12, "max_new_tokens": 1})

    found = findings_modalities.tables(model)
    assert {title.partition(",")[0] for title in found} == set(findings_modalities.KEYS)
    rows = found["masked"]
    sets = ["text", "special", "image", "all"]
    assert [row["masked"] for row in rows] == ["none", *sets, *sets]
    assert [row["share"] for row in rows] == [0, *[0.02] * 4, *[0.1] * 4]
    assert rows[5]["neurons"] == 76
    assert rows[0]["random: image"] is None  # nothing has no control
    by_layer = found["neurons by layer"][0]
    assert sum(by_layer[f"layer {i}"] for i in range(6)) == 15
    even = found["last token"][-1]
    assert even["masked"].startswith("(")
    assert sum(even[name][0] for name in ("text", "special", "image")) == pytest.approx(1, abs=0.01)
    for rows in found.values():
        assert markdown(rows)


def test_questions_and_descriptions_are_told_apart(
    model: HookedVLM, monkeypatch: pytest.MonkeyPatch
):
    seen = {}

    def curve(model, scores, tasks, **options):
        seen.update(tasks)
        raise InterruptedError

    monkeypatch.setattr(findings_modalities, "N_TESTED", 8)
    monkeypatch.setattr(findings_modalities, "masking_curve", curve)
    scores = miner.ModalityScores.__new__(miner.ModalityScores)
    with pytest.raises(InterruptedError):
        findings_modalities.by_kind(model, scores, ratio=0.1, seed=0)
    assert {name: len(samples) for name, samples in seen.items()} == {
        "image, questions": 8,
        "image, descriptions": 8,
        "text, questions": 7,
        "text, descriptions": 8,
    }
    for name, samples in seen.items():
        for sample in samples:
            assert bool(sample.images) == name.startswith("image")
            assert (sample.category == "description") == name.endswith("descriptions")


# Types ------------------------------------------------------------------------------------------


def _types(labels: list[int]) -> NeuronTypes:
    """Neurons of these labels (by place), each of them sure; the first one by chance."""
    counts = torch.nn.functional.one_hot(torch.tensor(labels), 4).T * 10
    tails = torch.full(counts.shape, 1e-6)
    tails[:, 0] = 1.0
    site = SiteTypes(counts, torch.ones(len(labels)), tails)
    tried = [
        {"T_v": 2.0, "n_v": 4, "T_t": 3.0, "n_t": 2, "visual": v, "text": 0, "multi-modal": 0}
        | {"unknown": 4 - v, "changed": changed}
        for v, changed in ((2, 0), (1, 1), (4, 2), (0, 4))
    ]
    return NeuronTypes(
        {"blocks.0.mlp.hook_act": site}, {"high_confidence": 0.8, "alpha": 0.05}, tried
    )


def test_types_are_shares_of_all_neurons():
    trained, random = [_types([0, 0, 1, 3]), _types([0, 0, 1, 2])], [_types([2, 2, 2, 2])] * 2
    visual, text, multi, unknown = findings_types.labels(trained, random)
    assert visual["share"] == [0.5, 0.5, 0.5]
    assert visual["above 0.8"] == [0.5, 0.5, 0.5]
    assert visual["more than chance"] == [0.25, 0.25, 0.25]
    assert unknown["share"] == multi["share"] == [0.125, 0.0, 0.25]
    assert (visual["least of the grid"], visual["most of the grid"]) == ([0] * 3, [1] * 3)
    assert multi["random weights: share"] == [1.0, 1.0, 1.0]
    assert text["random weights: share"] == [0.0, 0.0, 0.0]
    rows = findings_types.layers(trained, random)
    assert [row["layer"] for row in rows] == ["0", "all", "all, random weights"]
    assert [row["multi-modal"][0] for row in rows] == [0.125, 0.125, 1.0]
    layer = findings_types.by_layer(trained[0]).to_dict("records")[0]
    assert (layer["visual"], layer["above 0.8"], layer["more than chance"]) == (0.5, 1.0, 0.75)


def test_labels_that_stay_are_counted():
    same, median, farthest = findings_types.robustness([_types([0, 0, 1, 3]), _types([0, 0, 1, 2])])
    assert same["share of neurons"] == 0.75
    assert median["share of neurons"] == over_seeds([0.5])
    assert farthest["share of neurons"] == over_seeds([1.0])


# Explanations -----------------------------------------------------------------------------------


@pytest.mark.full
def test_explanations_are_shown_layer_by_layer_and_the_best_first(
    model: HookedVLM, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(findings_explanations, "SEEDS", (0,))
    monkeypatch.setattr(findings_explanations, "N_SAMPLES", 5)
    monkeypatch.setattr(findings_explanations, "N_NEURONS", 2)
    found = findings_explanations.tables(model)
    layers = [row["layer"] for row in found["by layer"]]
    assert layers == [
        *(f"vision encoder {i}" for i in range(4)),
        *(f"language model {i}" for i in range(6)),
    ]
    encoder, text = found["by layer"][0], found["by layer"][-1]
    assert encoder["tokens"] is None
    assert text["tokens"] is not None
    best = found["best"]
    assert (
        len({(row["best by"], row["neuron"]) for row in best}) == 2 * findings_explanations.N_BEST
    )
    for by, column in (("all positions", "score"), ("patches", "patches")):
        values = [row[column] for row in best if row["best by"] == by]
        assert values == sorted(values, reverse=True)


def test_neurons_are_drawn_from_every_layer(model: HookedVLM):
    one, same, other = (findings_explanations.neurons_of(model, seed) for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert len(set(one)) == len(one) == 10 * findings_explanations.N_NEURONS
    assert len({neuron.name for neuron in one}) == 10


def test_seeds_are_the_same_in_all_groups():
    assert findings_tables.SEEDS == findings_types.SEEDS == findings_modalities.SEEDS

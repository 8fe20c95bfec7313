"""How the findings on the real language model are run and stored; test_readme.py has the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import findings_real, findings_vlm
from benchmarks.findings_one_neuron import ONE, run, store, stored_tables


def test_tables_are_stored_in_their_order_beside_those_that_are_there(tmp_path: Path):
    path = tmp_path / "found.json"
    for title in ("second", "first"):
        store(path, {title: [{"k": title}]}, order=["first", "second"], settings={"n": 1})
    assert list(stored_tables(path)) == ["first", "second"]
    assert json.loads(path.read_text())["settings"] == {"n": 1}


def test_the_command_measures_what_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = []
    tables = {name: lambda study, name=name: [{"what": name, "of": study}] for name in ("a", "b")}
    run(
        lambda: made.append(1) or 7,
        tables,
        stored=tmp_path / "unused.json",
        settings={},
        about="Finds. And so on.",
        arguments=["--only", "b", "--out", str(tmp_path / "out.json"), "--threads", "1"],
    )
    assert made == [1]
    assert stored_tables(tmp_path / "out.json") == {"b": [{"what": "b", "of": 7}]}
    assert "### b" in capsys.readouterr().out
    assert not (tmp_path / "unused.json").exists()


def test_the_neuron_is_set_at_the_places_that_are_meant():
    values = torch.arange(2 * 3 * 600.0).reshape(2, 3, 600)
    written = findings_real._setting(first=1.0, others=None)(values, None)
    assert written[:, 0, ONE.index].tolist() == [1.0, 1.0]
    assert torch.equal(written[:, 1:], values[:, 1:])
    mask = torch.tensor([[False, True, False], [True, False, False]])
    zeroed = findings_vlm._zero_at(mask)(values, None)
    changed = (zeroed != values).nonzero().tolist()
    assert changed == [[0, 1, ONE.index], [1, 0, ONE.index]]
    assert findings_vlm._zero_at(mask)(values[:, :1], None) is None  # a step that generates


def test_what_is_drawn_at_random_leaves_the_one_neuron_out():
    class Fake:
        scores = {
            ONE.name: torch.zeros(600),
            "vision_encoder.blocks.0.hook_mlp_out": torch.zeros(5),
        }

    for seed in range(3):
        drawn = findings_vlm._random(Fake(), "blocks.", seed=seed)  # type: ignore[arg-type]
        assert len(drawn) == 100
        assert set(drawn.names) == {ONE.name}
        assert ONE not in drawn

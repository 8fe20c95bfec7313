"""The list of entries: counted, as a table, on disk."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from tests.analyses.entries import ASKED, TEXT, Entry, listed
from tests.tiny import Tiny
from vlm_lens.analyses.entry_scores import EntryScores
from vlm_lens.analyses.pcicn import score


def slow_firsts(entries: list[Entry]) -> list[int]:
    """At which entry (from 1) each further distinct neuron is reached."""
    seen, firsts = set(), []
    for rank, (name, _, index, _) in enumerate(entries, start=1):
        if (name, index) not in seen:
            seen.add((name, index))
            firsts.append(rank)
    return firsts


def test_entries_and_neurons_are_counted_into_each_other(llava: Tiny):
    found = score(llava.model, TEXT, n_noisy=2, max_entries=400)
    entries, neurons = listed(found), found.neurons
    firsts = slow_firsts(entries)
    assert len(neurons) == len(firsts) < len(entries) == 400
    assert [(n.name, n.index) for n in neurons] == [
        (entries[first - 1][0], entries[first - 1][2]) for first in firsts
    ]
    assert [found.n_entries(n) for n in range(len(firsts) + 1)] == [0, *firsts]
    for n in range(401):
        assert found.n_neurons(n) == len({(e[0], e[2]) for e in entries[:n]})
    with pytest.raises(ValueError, match=f"neurons from 0 to {len(firsts)}, .* got 401"):
        found.n_entries(401)
    with pytest.raises(ValueError, match="entries from 0 to 400, .* got -1"):
        found.n_neurons(-1)


def test_neurons_know_their_sizes(llava: Tiny):
    neurons = score(llava.model, TEXT, n_noisy=2).neurons
    _, cache = llava.model.run_with_cache(TEXT)
    neurons.check(cache.sizes)
    assert neurons.sizes["blocks.0.attn.hook_q"] == 32
    assert neurons[:5].sample_control().isdisjoint(neurons[:5])


def test_a_table_has_the_positions_and_their_tokens(llava: Tiny):
    found = score(llava.model, ASKED, n_noisy=2)
    table = found.to_dataframe(25)
    assert table.columns.tolist() == [
        *("rank", "component", "layer", "site", "index", "name", "position", "token", "score")
    ]
    entries = listed(found)
    rows = zip(table["name"], table["position"], table["index"], table["score"], strict=True)
    assert list(rows) == entries[:25]
    assert table["token"].tolist() == [found.tokens[entry[1]] for entry in entries[:25]]
    assert len(found.to_dataframe()) == 10
    assert len(found.to_dataframe(None)) == len(found)
    assert repr(found).startswith(f"EntryScores(PCICN: {len(found)} entries of ")
    assert "<table" in found._repr_html_()
    assert "&lt;image&gt;" in found._repr_html_() or "<image>" not in found._repr_html_()


def test_an_empty_list_is_one_too(llava: Tiny, tmp_path):
    found = score(llava.model, TEXT, n_noisy=1, threshold=1e9)
    assert (len(found), len(found.neurons), found.n_neurons(0)) == (0, 0, 0)
    assert repr(found) == "EntryScores(PCICN: 0 entries of 0 neurons)"
    assert found.to_dataframe().empty
    found.save(tmp_path)
    assert len(EntryScores.load(tmp_path)) == 0


def test_saved_and_loaded_it_is_the_same(llava: Tiny, tmp_path):
    found = score(llava.model, ASKED, n_noisy=2, max_entries=50)
    found.save(tmp_path / "new" / "folder")
    back = EntryScores.load(tmp_path / "new" / "folder")
    assert listed(back) == listed(found)
    assert (back.sizes, back.tokens, back.method) == (found.sizes, found.tokens, "PCICN")
    assert back.parameters == found.parameters
    assert back.neurons.sizes == found.neurons.sizes
    pd.testing.assert_frame_equal(back.to_dataframe(), found.to_dataframe())


def test_what_it_was_found_with_is_in_the_result(llava: Tiny):
    found = score(llava.model, TEXT, n_noisy=2, alpha=3, noise_on="text", sites="blocks.1.mlp.*")
    parameters = json.loads(json.dumps(found.parameters))
    assert parameters["class"] == "LlavaForConditionalGeneration"
    asked = {
        "alpha": 3,
        "n_noisy": 2,
        "noise_on": "text",
        "sites": [f"blocks.1.mlp.hook_{site}" for site in ("pre", "act", "pre_linear", "post")],
        "batch_size": 10,
        "seed": 42,
        "threshold": 1e-6,
        "max_entries": 10_000,
        "prompt": TEXT,
        "not_a_number": 0,
    }
    assert {name: parameters[name] for name in asked} == asked
    assert parameters["versions"]["torch"] == torch.__version__


def test_a_damaged_result_is_refused(llava: Tiny, tmp_path):
    score(llava.model, TEXT, n_noisy=1).save(tmp_path)
    path = tmp_path / "entry_scores.json"
    content = json.loads(path.read_text())
    for change in ({"tokens": ["<bos>"]}, {"sizes": {}}, {"more": 1}):
        path.write_text(json.dumps({**content, "fields": {**content["fields"], **change}}))
        with pytest.raises(ValueError, match="EntryScores.load can read"):
            EntryScores.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        EntryScores.load(tmp_path / "nowhere")

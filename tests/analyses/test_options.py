"""Options that analyses hand on are refused where nobody knows them, before any work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.tiny import Tiny
from vlm_lens import NeuronSet, Sample
from vlm_lens.analyses import can, critical_tables, miner, pcicn
from vlm_lens.analyses.entry_scores import EntryScores
from vlm_lens.analyses.miner_curve import masking_curve
from vlm_lens.experiments import matrix

NAME = "blocks.0.mlp.hook_post"
NEURONS = NeuronSet.from_indices({NAME: [1, 2]}, sizes={NAME: 64})
SAMPLE = Sample(images=[], text="red ?", answer="red", category="color")
ENTRIES = EntryScores(
    sizes={NAME: 64},
    name_index=torch.tensor([0]),
    position=torch.tensor([0]),
    index=torch.tensor([5]),
    score=torch.tensor([8.0]),
    tokens=("red",),
    method="PCICN",
    parameters={},
)
SEARCHES: dict[str, Callable[..., Any]] = {
    "can": lambda m, **bad: can.find_critical(m, [], NEURONS, **bad),
    "pcicn": lambda m, **bad: pcicn.find_critical(m, [], ENTRIES, **bad),
    "by_component": lambda m, **bad: critical_tables.by_component(m, [], NEURONS, **bad),
    "by_matrix": lambda m, **bad: critical_tables.by_matrix(m, [], NEURONS, **bad),
    "by_category": lambda m, **bad: critical_tables.by_category(m, [SAMPLE], **bad),
    "against_baselines": lambda m, **bad: critical_tables.against_baselines(m, [], NEURONS, **bad),
    "against_artefacts": lambda m, **bad: critical_tables.against_artefacts(
        m, [], NEURONS, controls=["mean ablation"], **bad
    ),
}


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_refuses_an_option_that_it_has_not_before_it_scores(llava: Tiny, search: str):
    with pytest.raises(TypeError, match="unexpected keyword 'max_kk'. Nearest: max_k"):
        SEARCHES[search](llava.model, max_kk=3)


def test_a_masking_curve_refuses_an_option_that_it_has_not(llava: Tiny):
    scores = miner.score(llava.model, [SAMPLE])
    for run, given in ((masking_curve, scores), (matrix, {})):
        with pytest.raises(TypeError, match="unexpected keyword 'batchsize'. Nearest: batch_size"):
            run(llava.model, given, {}, batchsize=3)

"""CAN ranks neurons first that were made critical, and none where none was."""

from __future__ import annotations

from typing import Any

import pytest

from tests.analyses import planted
from tests.analyses.test_can_score import GIVEN
from vlm_lens import HookedVLM, Neuron
from vlm_lens.analyses import can

SPIKE = Neuron("blocks.0.hook_mlp_out", planted.SPIKE)


def gap(scores: Any, rank: int) -> float:
    """How many times higher the last of the best is than the next one."""
    best = scores.to_dataframe(rank + 1)["score"]
    return float(best[rank - 1] / best[rank])


@pytest.fixture(scope="module")
def spiked() -> HookedVLM:
    tiny = planted.blank()
    planted.plant_spike(tiny)
    return tiny.model


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5])
def test_a_massive_activation_ranks_first(spiked: HookedVLM, alpha: float) -> None:
    found = can.score(spiked, planted.samples(), alpha=alpha, max_new_tokens=4)
    assert list(found.top(1)) == [SPIKE]
    if alpha < 0.5:
        assert gap(found, 1) > 3


def test_the_mean_over_tokens_hides_a_massive_activation(spiked: HookedVLM) -> None:
    """Why the largest position counts by default."""
    found = can.score(spiked, planted.samples(), tokens="mean", max_new_tokens=4)
    assert SPIKE not in found.top(50)


def test_the_gradient_alone_does_not_know_a_massive_activation(spiked: HookedVLM) -> None:
    """The norm behind it takes its size away, and with it the gradient."""
    found = can.score(spiked, planted.samples(), alpha=1.0, activation_power=0.0, max_new_tokens=4)
    assert SPIKE not in found.top(500)


def test_without_the_first_token_there_is_no_massive_activation(spiked: HookedVLM) -> None:
    found = can.score(spiked, planted.samples(), first_token=False, **GIVEN)
    assert found[SPIKE.name][SPIKE.index] == 0


@pytest.mark.parametrize("tokens", ["max", "last"])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_gate_that_feeds_the_answer_ranks_first(tokens: Any, alpha: float) -> None:
    tiny = planted.blank()
    planted.plant_gate(tiny)
    found = can.score(tiny.model, planted.samples(), alpha=alpha, tokens=tokens, max_new_tokens=4)
    unit = ("blocks.2.mlp.hook_pre", "blocks.2.mlp.hook_pre_linear")
    expected = {*(Neuron(n, planted.UNIT) for n in unit), Neuron("blocks.2.hook_mlp_out", 31)}
    assert found.top(3) == expected
    assert gap(found, 3) > 1.05


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5])
def test_without_a_plant_no_neuron_stands_out(alpha: float) -> None:
    found = can.score(planted.blank().model, planted.samples(), alpha=alpha, max_new_tokens=4)
    assert gap(found, 1) < 1.5

"""Explaining through a chat endpoint: what is asked, what it costs, and what may go wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.analyses.chat_server import Reply, chat_server
from tests.analyses.test_explain import OTHERS
from vlm_lens import HookedVLM, Sample
from vlm_lens.analyses import simulate
from vlm_lens.analyses.chat import Chat, ChatError
from vlm_lens.analyses.explain import (
    Cost,
    CostWarning,
    Explanations,
    by_chat,
    explain,
)
from vlm_lens.shapes_llava.world import make_samples


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [s for task in ("image", "text") for s in make_samples(task=task, n=6)]


def answer(request: dict) -> Reply:
    """Explains, or predicts numbers that depend on the description."""
    said = " ".join(
        part["text"] for part in request["messages"][1]["content"] if part["type"] == "text"
    )
    if "Reply with a JSON object" not in said:
        return Reply(content=f"the number {len(said)}")
    rng = np.random.default_rng(len(said))
    reply: dict[str, Any] = {"image 1": rng.integers(0, 10, (8, 8)).tolist()}
    if '"words": a list of' in said:
        n = int(said.split('"words": a list of ')[1].split()[0])
        reply["words"] = rng.integers(0, 10, n).tolist()
    return Reply(content=json.dumps(reply))


@pytest.mark.full
def test_a_chat_explains_and_simulates_and_its_cost_is_told_before(
    shapes: HookedVLM, samples: list[Sample], tmp_path: Path
):
    with chat_server() as server:
        server.otherwise = answer
        costs: list[tuple[Cost, int]] = []

        def run(cache: Path) -> Explanations:
            chat = Chat(server.url, "tiny", cache=cache, input_price=1, output_price=1)
            return explain(
                shapes,
                samples,
                OTHERS[:3],
                explainer=by_chat(chat, shown=2),
                simulator=simulate.by_chat(chat),
                top=2,
                random=1,
                shuffles=1,
                on_cost=lambda cost: costs.append((cost, len(server.requests))),
            )

        some = run(tmp_path)
        [(cost, sent_before)] = costs
        assert sent_before == 0
        asked = len(server.requests)
        assert asked == cost.requests
        assert asked == 3 + 2 * sum(len(one.held_out.every) for one in some.neurons) - _shared(some)
        assert cost.price is not None
        assert cost.price > 0
        again = run(tmp_path)
        assert len(server.requests) == asked  # all of it is in the cache
    np.testing.assert_array_equal(again.scores, some.scores)
    assert some.parameters["cost"]["requests"] == cost.requests
    assert all(one.explanation.text.startswith("the number") for one in some.neurons)


def _shared(some: Explanations) -> int:
    """How often an explanation meets a sample twice: its own neuron's and another one's."""
    from vlm_lens.analyses.explaining.scoring import other_neurons

    [others] = other_neurons(len(some), times=1, seed=0)
    met = [
        (said, one.view.number)
        for i, found in enumerate(some.neurons)
        for said in (i, others[i])
        for one in found.held_out.every
    ]
    return len(met) - len(set(met))


def test_requests_are_announced_by_default_and_can_be_stopped(
    shapes: HookedVLM, samples: list[Sample]
):
    with chat_server() as server:
        chat = Chat(server.url, "tiny")
        options: dict[str, Any] = {"explainer": by_chat(chat), "top": 2, "random": 1, "shuffles": 0}
        flat: Any = lambda _, view: np.arange(len(view), dtype=np.float64)  # noqa: E731

        def stop(cost: Cost) -> None:
            raise RuntimeError(f"too much: {cost.requests}")

        with pytest.raises(RuntimeError, match="too much: 2"):
            explain(shapes, samples, OTHERS[:2], simulator=flat, on_cost=stop, **options)
        assert server.requests == []
        with pytest.warns(CostWarning, match="about to be sent: requests: 2"):
            explain(shapes, samples, OTHERS[:2], simulator=flat, **options)
        assert len(server.requests) == 2


def test_an_endpoint_that_fails_ends_the_run(shapes: HookedVLM, samples: list[Sample]):
    with chat_server() as server:
        server.otherwise = lambda _: Reply(status=401, body=b"{}")
        with pytest.raises(ChatError, match="the key is missing or wrong"):
            explain(
                shapes,
                samples,
                OTHERS[:2],
                explainer=by_chat(Chat(server.url, "tiny")),
                simulator=lambda _, view: np.zeros(len(view)),
                top=2,
                random=1,
                on_cost=lambda _: None,
            )
        assert len(server.requests) == 1


def test_replies_that_are_useless_leave_neurons_and_chance_scores_out(
    shapes: HookedVLM, samples: list[Sample]
):
    with chat_server() as server:
        said = iter(["one", "two", "three"])

        def reply(request: dict) -> Reply:
            content = request["messages"][1]["content"]
            text = " ".join(part["text"] for part in content if part["type"] == "text")
            if "Reply with a JSON object" not in text:
                return Reply(content=next(said))
            return Reply(content="no") if "active at: two" in text else answer(request)

        server.otherwise = reply
        chat = Chat(server.url, "tiny", attempts=1)
        some = explain(
            shapes,
            samples,
            OTHERS[:3],
            explainer=by_chat(chat),
            simulator=simulate.by_chat(chat),
            top=2,
            random=1,
            on_cost=lambda _: None,
        )
    assert list(some) == [OTHERS[0], OTHERS[2]]
    assert "expected a JSON object" in some.skipped[OTHERS[1]]
    assert np.isfinite(some.scores).all()

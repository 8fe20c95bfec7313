"""One model, many threads, and blocks that end in any order."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch

from tests.conftest import assert_no_hooks
from tests.tiny import Tiny
from vlm_lens import HookedVLM
from vlm_lens.hooks import turns
from vlm_lens.hooks.turns import Turns

NAME = "blocks.1.mlp.hook_post"


def in_threads(*work: Any) -> None:
    """Runs functions at the same time; their errors are raised here."""
    errors: list[BaseException] = []

    def run(function: Any) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for error in errors:
        raise error


@pytest.mark.full
def test_each_thread_gets_its_own_activations(llava: Tiny):
    """Whether it keeps, edits, generates or only runs; slow hooks let the others in."""
    model, inputs = llava.model, [llava.inputs(kind) for kind in ("text", "image", "images")]
    with torch.no_grad():
        kept = [model.run_with_cache(one, names_filter=NAME)[1][NAME] for one in inputs]
        logits = [model(one) for one in inputs]
        edited = [model.run_with_hooks(one, fwd_hooks=[(NAME, zero)]) for one in inputs]
        answers = [model.generate(one, max_new_tokens=2) for one in inputs]
        patterns = [model.run_with_cache(one)[1]["pattern", 1] for one in inputs]

    @torch.no_grad()
    def work(i: int) -> None:
        for _ in range(4):
            _, cache = model.run_with_cache(inputs[i], names_filter=NAME)
            assert torch.equal(cache[NAME], kept[i])
            assert torch.equal(model(inputs[i]), logits[i])
            assert torch.equal(model.run_with_cache(inputs[i])[1]["pattern", 1], patterns[i])
            hooked = model.run_with_hooks(inputs[i], fwd_hooks=[(NAME, zero)])
            assert torch.equal(hooked, edited[i])
            assert model.generate(inputs[i], max_new_tokens=2) == answers[i]

    in_threads(*(lambda i=i: work(i) for i in range(3)))
    assert_no_hooks(model)


def zero(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
    time.sleep(0.002)
    return tensor * 0


def test_two_wrappers_of_one_model_take_turns(llava: Tiny):
    other = HookedVLM(llava.hf, processor=llava.processor)
    long, short = llava.inputs("image"), llava.inputs("text")
    right = llava.model.run_with_cache(long, names_filter=NAME)[1][NAME]

    def keep() -> None:
        for _ in range(8):
            _, cache = llava.model.run_with_cache(long, names_filter=NAME)
            assert torch.equal(cache[NAME], right)

    def run() -> None:
        for _ in range(20):
            other(short)

    in_threads(keep, run)


def test_a_thread_that_ended_inside_a_block_is_named(llava: Tiny):
    block = llava.model.hooks([(NAME, lambda t, hook: None)])
    in_threads(block.__enter__)
    with pytest.raises(RuntimeError, match="ended inside a block of hooks"):
        llava.model("red")
    block.__exit__(None, None, None)
    llava.model("red")


def test_another_thread_waits_for_the_end_of_a_block(llava: Tiny):
    order: list[str] = []
    inside = threading.Event()

    def blocks() -> None:
        with llava.model.hooks([(NAME, lambda t, hook: None)]):
            inside.set()
            time.sleep(0.05)
            llava.model("red")
            order.append("block")

    def runs() -> None:
        inside.wait()
        llava.model("red")
        order.append("run")

    in_threads(blocks, runs)
    assert order == ["block", "run"]


def test_a_block_may_end_in_another_thread(llava: Tiny):
    block = llava.model.hooks([(NAME, lambda t, hook: None)])
    in_threads(block.__enter__)
    in_threads(lambda: block.__exit__(None, None, None))
    assert_no_hooks(llava.model)
    llava.model("red")


def test_who_waits_long_says_for_whom(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.02)
    turn, release = Turns(), threading.Event()
    holding = threading.Event()

    def hold() -> None:
        with turn:
            holding.set()
            release.wait(10)

    thread = threading.Thread(target=hold, name="the server")
    thread.start()
    holding.wait()
    threading.Timer(0.2, release.set).start()
    with pytest.warns(RuntimeWarning, match="waited.*thread 'the server'.*open the block in"):
        turn.__enter__()
    turn.__exit__(None, None, None)
    thread.join()


def test_blocks_that_end_out_of_order_keep_their_hooks(llava: Tiny):
    """Two widgets, two tasks: the one opened first is closed first, and a run comes between."""
    seen: list[str] = []
    first = llava.model.hooks([(NAME, lambda t, hook: seen.append("first"))])
    second = llava.model.hooks([(NAME, lambda t, hook: seen.append("second"))])
    first.__enter__()
    second.__enter__()
    assert llava.model.context_level == 2
    first.__exit__(None, None, None)
    for run in (llava.model.run_with_hooks, llava.model, llava.model.run_with_cache):
        run("red")
    third = llava.model.hooks([(NAME, lambda t, hook: seen.append("third"))])
    with third:
        second.__exit__(None, None, None)
        llava.model("red")
    assert seen == ["second"] * 3 + ["third"]
    assert llava.model.context_level == 0


def test_hooks_that_are_to_stay_outlive_other_blocks(llava: Tiny):
    seen: list[str] = []
    stays = (NAME, lambda t, hook: seen.append("stays"))
    llava.model.run_with_hooks("red", fwd_hooks=[stays], reset_hooks_end=False)
    llava.model.run_with_cache("red", names_filter=NAME)
    with llava.model.hooks([(NAME, lambda t, hook: None)]):
        pass
    llava.model("red")
    assert len(seen) == 3
    llava.model.reset_hooks()

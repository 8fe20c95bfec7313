"""Tiny models for the tables: what is critical, where, and for which samples is known."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

from tests.analyses.planted import (
    ALWAYS,
    ANSWER,
    IS_FIRST,
    SPIKE,
    blank,
    plant_gate,
    plant_spike,
    samples,
)
from tests.tiny import SPECIAL, WORDS, Tiny, build_tiny, picture
from vlm_lens import Neuron, NeuronSet
from vlm_lens.analyses import can
from vlm_lens.analyses.comparison import Comparison
from vlm_lens.data import Sample
from vlm_lens.results.scores import Scores

SHORT: dict[str, Any] = {"max_new_tokens": 4}
DOWN = "blocks.*.hook_mlp_out"

RED, BLUE = (len(SPECIAL) + WORDS.index(word) for word in ("red", "blue"))


def down(layer: int, channel: int) -> Neuron:
    """An output channel of a down projection."""
    return Neuron(f"blocks.{layer}.hook_mlp_out", channel)


@torch.no_grad()
def write(
    tiny: Tiny, *, layer: int, units: Iterable[int], reads: int, writes: int, value: float
) -> None:
    """Units that are on where one channel is, and write its `value` to another one, in all."""
    mlp, units = tiny.hf.model.language_model.layers[layer].mlp, list(units)
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight[units] = 0.0
        linear.weight[units, reads] = 4.0
    mlp.down_proj.weight[:, units] = 0.0
    mlp.down_proj.weight[writes, units] = 1.0
    name = f"blocks.{layer}.hook_mlp_out"
    _, cache = tiny.model.run_with_cache("what color ?", names_filter=name)
    mlp.down_proj.weight[writes, units] = value / cache[name][0, -1, writes]


@torch.no_grad()
def says(tiny: Tiny, channel: int, word: int, weight: float) -> None:
    """A channel of the stream speaks for a word."""
    tiny.hf.lm_head.weight[word, channel] = weight


def spread_out() -> Tiny:
    """All that speaks for "red" is one channel that 24 units of the second block write together."""
    tiny = blank()
    write(tiny, layer=1, units=range(24), reads=ALWAYS, writes=ANSWER, value=6.0)
    says(tiny, ANSWER, RED, 6.0)
    return tiny


@torch.no_grad()
def twins() -> Tiny:
    """Two channels as large as each other, of which one speaks for "red" and the other is idle."""
    tiny = blank()
    write(tiny, layer=2, units=[3], reads=ALWAYS, writes=ANSWER, value=6.0)
    says(tiny, ANSWER, RED, 6.0)
    weight = tiny.hf.model.language_model.layers[2].mlp.down_proj.weight
    weight[SPIKE] = 0.9 * weight[ANSWER]
    return tiny


def large_and_small() -> Tiny:
    """Two channels that speak for "red", each enough: a large one, and one that is read a lot."""
    tiny = blank()
    write(tiny, layer=2, units=[3], reads=ALWAYS, writes=SPIKE, value=100.0)
    write(tiny, layer=2, units=[5], reads=ALWAYS, writes=ANSWER, value=0.1)
    says(tiny, SPIKE, RED, 1.5)
    says(tiny, ANSWER, RED, 1500.0)
    return tiny


@torch.no_grad()
def two_kinds() -> Tiny:
    """A question is answered "red", a statement "blue"; one channel speaks for each."""
    tiny = blank()
    embed = tiny.hf.model.language_model.embed_tokens
    embed.weight[:, [IS_FIRST, ALWAYS]] = 0.0
    for flag, word in ((IS_FIRST, "?"), (ALWAYS, ".")):
        embed.weight[len(SPECIAL) + WORDS.index(word), flag] = 2.0
    tiny.hf.model.multi_modal_projector.linear_2.bias[ALWAYS] = 0.0
    write(tiny, layer=2, units=[3], reads=IS_FIRST, writes=SPIKE, value=6.0)
    mlp = tiny.hf.model.language_model.layers[2].mlp
    for linear in (mlp.gate_proj, mlp.up_proj):
        linear.weight[5] = 0.0
        linear.weight[5, ALWAYS] = 4.0
    mlp.down_proj.weight[:, 5] = 0.0
    mlp.down_proj.weight[ANSWER, 5] = mlp.down_proj.weight[SPIKE, 3]
    says(tiny, SPIKE, RED, 6.0)
    says(tiny, ANSWER, BLUE, 6.0)
    return tiny


def overflowing() -> tuple[Tiny, NeuronSet]:
    """In half precision, a constant neuron that keeps another one from overflowing, and a ranking.

    Without its first two neurons nothing about an image is finite; without all three it is.
    """
    tiny = build_tiny("clip-llama", dtype=torch.float16)
    projector = tiny.hf.model.multi_modal_projector
    with torch.no_grad():
        projector.linear_1.weight[:2] = 0.0
        projector.linear_1.bias[:2] = 10.0
        projector.linear_2.weight[5] = 0.0
        projector.linear_2.weight[5, 0] = 6e3
        projector.linear_2.weight[5, 1] = -6e3
        projector.linear_2.bias[5] = 3e4
    name = "projector.mlp.hook_pre"
    return tiny, NeuronSet.from_indices({name: [7, 1, 0]}, sizes={name: 32})


def questions_and_statements(n: int = 8) -> list[Sample]:
    """Half of them questions, half statements; most about a picture."""
    words = ["what color is the circle", "the square is red", "left", "is a circle left"]
    return [
        Sample(
            images=[picture(i)] if i % 4 else [],
            text=f"{'<image> ' * bool(i % 4)}{words[i // 2 % 4]} {'?' if i % 2 else '.'}",
            answer="red" if i % 2 else "blue",
            category="question" if i % 2 else "statement",
        )
        for i in range(n)
    ]


@cache
def built(name: str) -> Tiny:
    """A model by its name: what is planted, or "blank"."""
    whole = {
        "spread out": spread_out,
        "twins": twins,
        "large and small": large_and_small,
        "two kinds": two_kinds,
    }
    if name in whole:
        return whole[name]()
    tiny = blank()
    for plant in name.split(" and "):
        if plant != "blank":
            {"gate": plant_gate, "spike": plant_spike}[plant](tiny)
    return tiny


@cache
def scored(name: str, **options: Any) -> Scores:
    """CAN's scores of such a model on `samples`."""
    return can.score(built(name).model, samples(), **SHORT, **options)


def row(comparison: Comparison, label: str) -> dict[str, Any]:
    """A row of the table, without the k in its columns' names."""
    table = comparison.table().set_index("search")
    return {name.removesuffix(f" at {comparison.k}"): table[name][label] for name in table}

"""Tiny models in which known neurons are critical, and how they were made so."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.tiny import SPECIAL, WORDS, Tiny, build_tiny, picture
from vlm_lens.data import Sample

BOS = SPECIAL.index("<bos>")
SPIKE, IS_FIRST, ALWAYS, ANSWER = 28, 29, 30, 31
"""Channels of the residual stream that the random model does not use, and the plants do."""

UNIT = 7
"""The MLP unit that is planted."""

SLOW = (3, 7)
"""The two channels of a head that rotary positions hardly turn."""


def samples(n: int = 6) -> list[Sample]:
    """Questions of different length about pictures, and one without."""
    texts = ["what color ?", "is the square red ?", "left circle", "is the green circle left ?"]
    asked = [
        Sample(images=[picture(i)], text=f"<image> {texts[i % 4]}", answer="red circle")
        for i in range(n - 1)
    ]
    return [*asked, Sample(images=[], text="what is two ?", answer="one")]


@torch.no_grad()
def blank() -> Tiny:
    """A random model, sure of its answers, that does not use the last four channels of its stream.

    `ALWAYS` is 1 at every position, and `IS_FIRST` at the first token's.
    """
    tiny = build_tiny("clip-llama")
    model, head = tiny.hf.model.language_model, tiny.hf.lm_head
    head.weight *= 6
    unused = [SPIKE, IS_FIRST, ALWAYS, ANSWER]
    for block in model.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight[unused] = 1.0
        mlp, attention = block.mlp, block.self_attn
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight[:, unused] = 0.0
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight[:, unused] = 0.0
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight[unused] = 0.0
    model.norm.weight[unused] = 1.0
    head.weight[:, unused] = 0.0
    model.embed_tokens.weight[:, unused] = 0.0
    model.embed_tokens.weight[:, ALWAYS] = 1.0
    model.embed_tokens.weight[BOS, IS_FIRST] = 1.0
    projector = tiny.hf.model.multi_modal_projector
    projector.linear_2.weight[unused] = 0.0
    projector.linear_2.bias[unused] = 0.0
    projector.linear_2.bias[ALWAYS] = 1.0
    return tiny


@torch.no_grad()
def plant_spike(tiny: Tiny, *, size: float = 300.0, sink: float = 1.5) -> None:
    """A massive activation, as in LLaMA (Sun et al. 2024): an attention sink at the first token.

    In the first block one unit, which only the first token turns on, writes `size` to one channel.
    The norms of the later blocks leave nothing but this channel of the first token, their heads'
    keys read it, and so all queries attend to it, and take nothing from it. Without it they attend
    to other tokens.
    """
    first, *later = tiny.hf.model.language_model.layers
    _only(first.mlp.gate_proj.weight, UNIT, IS_FIRST, 4.0)
    _only(first.mlp.up_proj.weight, UNIT, IS_FIRST, 4.0)
    first.mlp.down_proj.weight[:, UNIT] = 0.0
    first.mlp.down_proj.weight[SPIKE, UNIT] = 1.0
    written = _activation(tiny, "blocks.0.hook_mlp_out")[0, 0, SPIKE]
    first.mlp.down_proj.weight[SPIKE, UNIT] = size / written
    for block in later:
        attention = block.self_attn
        for head in range(4):
            place = head * 8 + SLOW[0]
            for linear in (attention.q_proj, attention.k_proj):
                linear.weight[[place, head * 8 + SLOW[1]]] = 0.0
            attention.q_proj.weight[place, ALWAYS] = sink
            attention.k_proj.weight[place, SPIKE] = sink


@torch.no_grad()
def plant_gate(tiny: Tiny, *, word: str = "red", size: float = 0.6) -> None:
    """One unit of the last block that is always on, and all that speaks for one answer."""
    *_, last = tiny.hf.model.language_model.layers
    _only(last.mlp.gate_proj.weight, UNIT, ALWAYS, 4.0)
    _only(last.mlp.up_proj.weight, UNIT, ALWAYS, 4.0)
    last.mlp.down_proj.weight[:, UNIT] = 0.0
    last.mlp.down_proj.weight[ANSWER, UNIT] = 1.0
    tiny.hf.lm_head.weight[len(SPECIAL) + WORDS.index(word), ANSWER] = size


def _only(weight: Tensor, row: int, column: int, value: float) -> None:
    weight[row] = 0.0
    weight[row, column] = value


def _activation(tiny: Tiny, name: str) -> Any:
    _, cache = tiny.model.run_with_cache("what color ?", names_filter=name)
    return cache[name]

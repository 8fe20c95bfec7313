"""A tiny model in which one neuron answers questions about images, and another those about words.

A unit of the first layer is active at image tokens only, another at one word only; each writes to a
channel of its own. A head of the second layer takes the mean over all tokens of both, and each
speaks for an answer of its own. So without the first unit the model fails at images and nothing
else, and without the second it fails at words and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.tiny import SPECIAL, WORDS, Tiny, build_tiny, picture
from vlm_lens import HookedVLM, Neuron, Sample

IS_IMAGE, IS_WORD, FROM_IMAGE, FROM_WORD, SAYS_RED, SAYS_BLUE = range(26, 32)
"""Channels of the residual stream that nothing else uses."""

UNITS = {"image": 7, "text": 9}
WORD = "square"
_ANSWERS = {"red": SAYS_RED, "blue": SAYS_BLUE}


@dataclass(frozen=True)
class PlantedTasks:
    """The model, its tasks, and the neuron that each task needs.

    Attributes:
        model: The model; answers are one token long.
        tasks: "image" and "text", with the answers that the model gives.
        image: What the first needs.
        text: What the second needs.
    """

    model: HookedVLM
    tasks: dict[str, list[Sample]]
    image: Neuron
    text: Neuron


def planted_tasks() -> PlantedTasks:
    """A new model."""
    tiny = _blank()
    first, second, _ = tiny.hf.model.language_model.layers
    with torch.no_grad():
        _plant_unit(first, UNITS["image"], IS_IMAGE, FROM_IMAGE)
        _plant_unit(first, UNITS["text"], IS_WORD, FROM_WORD)
        _plant_mean(second)
        for word, channel in _ANSWERS.items():
            tiny.hf.lm_head.weight[_token(word), channel] = 300.0
    images = [
        Sample(images=[picture(i)], text=f"<image> {text}", answer="red")
        for i, text in enumerate(["what color ?", "is the circle left ?", "a green circle ?"] * 2)
    ]
    words = [
        Sample(images=[], text=f"{text} {WORD} ?", answer="blue")
        for text in ("is the", "what is a", "left is one green", "what color is the") * 2
    ]
    neurons = {name: Neuron("blocks.0.mlp.hook_act", unit) for name, unit in UNITS.items()}
    return PlantedTasks(tiny.model, {"image": images, "text": words}, **neurons)


@torch.no_grad()
def _blank() -> Tiny:
    """A random model that neither reads nor writes the last six channels of its stream."""
    tiny = build_tiny("clip-llama")
    unused = list(range(IS_IMAGE, SAYS_BLUE + 1))
    model, projector = tiny.hf.model.language_model, tiny.hf.model.multi_modal_projector
    for block in model.layers:
        attention, mlp = block.self_attn, block.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.weight[:, unused] = 0.0
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight[:, unused] = 0.0
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight[unused] = 0.0
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight[unused] = 1.0
    model.norm.weight[unused] = 1.0
    tiny.hf.lm_head.weight[:, unused] = 0.0
    model.embed_tokens.weight[:, unused] = 0.0
    model.embed_tokens.weight[_token(WORD), IS_WORD] = 5.0
    projector.linear_2.weight[unused] = 0.0
    projector.linear_2.bias[unused] = 0.0
    projector.linear_2.bias[IS_IMAGE] = 5.0
    return tiny


def _plant_unit(block: torch.nn.Module, unit: int, reads: int, writes: int) -> None:
    for linear, weight in ((block.mlp.gate_proj, 60.0), (block.mlp.up_proj, 6.0)):
        linear.weight[unit] = 0.0
        linear.weight[unit, reads] = weight
    block.mlp.down_proj.weight[:, unit] = 0.0
    block.mlp.down_proj.weight[writes, unit] = 0.1


def _plant_mean(block: torch.nn.Module) -> None:
    """The first head attends evenly to everything before it, and passes two channels on."""
    attention = block.self_attn
    for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
        linear.weight[:8] = 0.0
    attention.o_proj.weight[:, :8] = 0.0
    for place, (source, target) in enumerate(((FROM_IMAGE, SAYS_RED), (FROM_WORD, SAYS_BLUE))):
        attention.v_proj.weight[place, source] = 1.0
        attention.o_proj.weight[target, place] = 1.0


def _token(word: str) -> int:
    return len(SPECIAL) + WORDS.index(word)

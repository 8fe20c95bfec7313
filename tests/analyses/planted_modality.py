"""shapes-llava with three planted neurons: one sees red, one reads "red", one does both.

The planted features have channels of the residual stream to themselves, from the pixels and from
the embedding of the word on, so that what the three neurons react to is known exactly. They write
nothing, and the channels that they take were hardly used: the model still answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm_lens import HookedVLM, Neuron, Sample
from vlm_lens.shapes_llava.world import make_samples

WORD = "red"
"""What the planted neurons are about: the colour, the word, or both."""

SEEN, OPPOSITE = 72, 57
"""Channels of the vision tower: the redness of a patch, and its negative, so their mean is 0."""

IMAGE, TEXT = 1, 17
"""Channels of the residual stream: redness of a patch at image tokens, the word at text tokens."""

UNIT = 11
"""The unit of the projector's first layer that carries redness over."""

PLANTS = {"image": (1, 5), "text": (2, 6), "both": (3, 7)}
"""Layer and index of each planted neuron."""

_REDNESS = (1.0, -0.95, -0.45)
"""Weights of a pixel's channels (-1 to 1): red gives 1.7, all other colours 0.7 at the most."""

_LEAST = 0.78
"""The mean redness of a patch from which on it counts: about half of it is red, or less in the
dark."""


@dataclass(frozen=True)
class Planted:
    """A model, what to ask it, and the neurons that an analysis must find.

    Attributes:
        model: shapes-llava with the planted neurons.
        samples: Images, descriptions and told scenes, all of which are about something red.
        image: Is positive on image tokens whose patch is mostly red, 0 (or a trace below) on all
            other positions.
        text: Is positive on the word "red", 0 everywhere else.
        both: Is positive on either, 0 everywhere else.
    """

    model: HookedVLM
    samples: list[Sample]
    image: Neuron
    text: Neuron
    both: Neuron


def planted(*, n: int = 24, activation: float = 60.0) -> Planted:
    """A new model with planted neurons, and `n` samples (see `red_samples`).

    Args:
        n: How many samples.
        activation: About how active a planted neuron is where its feature is there.
    """
    model = HookedVLM.from_pretrained("shapes-llava")
    _plant_redness(model.hf_model)
    _plant_word(model.hf_model, model.tokenizer.convert_tokens_to_ids(WORD))
    weights = {IMAGE: activation, TEXT: 3.5 * activation}  # about the same at their tokens
    for kind, channels in {"image": [IMAGE], "text": [TEXT], "both": [IMAGE, TEXT]}.items():
        chosen = {channel: weights[channel] for channel in channels}
        _plant_neuron(model.hf_model, *PLANTS[kind], weights=chosen)
    neurons = {k: Neuron(f"blocks.{layer}.mlp.hook_act", i) for k, (layer, i) in PLANTS.items()}
    return Planted(model=model, samples=red_samples(n), **neurons)


def red_samples(n: int = 24, *, seed: int = 0) -> list[Sample]:
    """In turn a question about an image, a description of an image, and a told scene.

    Each has something red in the scene. Questions and told scenes name the colour in their prompt;
    descriptions name it at least twice in their answer, not in their prompt, and their images have
    at least five patches most of which is red.
    """
    tasks = ("image", "caption", "text")
    found = {task: _about_red(task, -(-n // 3), seed) for task in tasks}
    return [found[tasks[i % 3]][i // 3] for i in range(n)]


def is_red(sample: Sample, position: int) -> bool:
    """Whether the patch of an image token (0 to 63, row by row) shows anything red."""
    return any(
        thing["color"] == WORD and bool(thing["patch_mask"].flat[position])
        for thing in sample.annotations["objects"]
    )


def _about_red(task: str, n: int, seed: int) -> list[Sample]:
    def fits(sample: Sample) -> bool:
        red = [thing for thing in sample.annotations["objects"] if thing["color"] == WORD]
        if task == "caption":
            return len(red) >= 2 and sum((r["patch_fraction"] > 0.5).sum() for r in red) >= 5
        return bool(red) and WORD in sample.text.split()

    made = make_samples(task=task, n=60 * n + 200, seed=seed)
    return [sample for sample in made if fits(sample)][:n]


# Weights ------------------------------------------------------------------------------------------


@torch.no_grad()
def _plant_redness(hf: nn.Module) -> None:
    """From pixels to the channel `IMAGE` of image tokens, through nothing else."""
    tower, projector = hf.model.vision_tower, hf.model.multi_modal_projector
    embeddings = tower.embeddings
    for sign, channel in ((1.0, SEEN), (-1.0, OPPOSITE)):
        weights = torch.tensor(_REDNESS)[:, None, None].expand(3, 8, 8) / 64
        embeddings.patch_embedding.weight[channel] = sign * weights
        embeddings.position_embedding.weight[:, channel] = -sign * _LEAST
        embeddings.class_embedding[channel] = 0.0
    channels = [SEEN, OPPOSITE]
    _keep(tower.pre_layrnorm, channels)
    for layer in tower.encoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _hide(channels, attention.q_proj, attention.k_proj, attention.v_proj, mlp.fc1)
        _silence(channels, attention.out_proj, mlp.fc2)
    first, second = projector.linear_1, projector.linear_2
    _hide(channels, first)
    _silence([UNIT], first)
    first.weight[UNIT, SEEN], first.weight[UNIT, OPPOSITE] = 50.0, -50.0
    _silence([IMAGE, TEXT], second)
    second.weight[:, UNIT] = 0.0
    second.weight[IMAGE, UNIT] = 0.2


@torch.no_grad()
def _plant_word(hf: nn.Module, token: int) -> None:
    """The channels `IMAGE` and `TEXT` are nobody else's; the word's embedding sets the second."""
    channels, model = [IMAGE, TEXT], hf.model.language_model
    for layer in model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        _hide(channels, attention.q_proj, attention.k_proj, attention.v_proj)
        _hide(channels, mlp.gate_proj, mlp.up_proj)
        _silence(channels, attention.o_proj, mlp.down_proj)
        _keep(layer.input_layernorm, channels)
        _keep(layer.post_attention_layernorm, channels)
    _hide(channels, hf.lm_head)
    model.embed_tokens.weight[:, channels] = 0.0
    model.embed_tokens.weight[token, TEXT] = 1.0


@torch.no_grad()
def _plant_neuron(hf: nn.Module, layer: int, index: int, *, weights: dict[int, float]) -> None:
    mlp = hf.model.language_model.layers[layer].mlp
    mlp.gate_proj.weight[index] = 0.0
    mlp.gate_proj.weight[index, list(weights)] = torch.tensor(list(weights.values()))
    mlp.down_proj.weight[:, index] = 0.0


def _hide(channels: list[int], *linears: nn.Linear) -> None:
    """Layers that do not read these channels."""
    for linear in linears:
        linear.weight[:, channels] = 0.0


def _silence(channels: list[int], *linears: nn.Linear) -> None:
    """Layers that do not write to these channels."""
    for linear in linears:
        linear.weight[channels] = 0.0
        if linear.bias is not None:
            linear.bias[channels] = 0.0


def _keep(norm: nn.Module, channels: list[int]) -> None:
    """A norm that scales these channels by the same positive number, and does not shift them."""
    norm.weight[channels] = 1.0
    bias: Tensor | None = getattr(norm, "bias", None)
    if bias is not None:
        bias[channels] = 0.0

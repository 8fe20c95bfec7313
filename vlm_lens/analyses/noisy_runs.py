"""One prompt, run with noise on its embeddings, and how far that moves each activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.data import Sample
from vlm_lens.hooks.heads import flat_heads
from vlm_lens.inputs import Inputs
from vlm_lens.masking.replay import in_copies, replay_below
from vlm_lens.model import HookedVLM

NoiseOn = Literal["text", "image", "all"]
"""Which positions get noise: those of an image's (or a sound's) features, all others, or both."""

EMBED = "hook_embed"


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: As it was asked, or as it went into the tokenizer.
        arguments: Keyword arguments of the model's forward, for a batch of one.
        tokens: Each position's token as text.
        media: The positions that an image's or a sound's features fill.
    """

    text: str
    arguments: dict[str, Tensor]
    tokens: list[str]
    media: Bool[Tensor, " pos"]


def prompt_of(model: HookedVLM, sample: Sample | Inputs | str) -> Prompt:
    """A sample (without its answer), prepared inputs or raw text as a prompt.

    Raises:
        TypeError: It is none of these.
        ValueError: The inputs are not one prompt.
    """
    if isinstance(sample, str):
        tokens = model.to_tokens(sample, truncate=False)
        media = torch.zeros(tokens.shape[1], dtype=torch.bool)
        return Prompt(sample, {"input_ids": tokens}, model.to_str_tokens(tokens), media)
    if isinstance(sample, Sample):
        inputs = model.prepare(text=sample.text, images=sample.images or None)
    elif isinstance(sample, Inputs):
        inputs = sample.to(model.cfg.device)
    else:
        raise TypeError(
            f"expected one sample, prepared inputs or a text, got {type(sample).__name__}: pass "
            'Sample(images=[...], text="..."), or what model.prepare(...) returns'
        )
    if len(inputs.token_map) != 1 or not inputs.attention_mask.all():
        raise ValueError(
            f"expected one prompt without padding, got {inputs}: an entry is a channel at a "
            "position of one prompt; call it once for each"
        )
    [token_map] = inputs.token_map
    media = token_map.mask("image") | token_map.mask("audio")
    if any(hasattr(block, "cross_attn") for block in model.blocks):
        media = torch.zeros_like(media)  # images are read by attention; no position holds them
    return Prompt(inputs.texts[0], dict(inputs), token_map.tokens, media)


def noisy_positions(prompt: Prompt, noise_on: NoiseOn) -> Bool[Tensor, " pos"]:
    """The positions that get noise.

    Raises:
        ValueError: There is no such choice, or no image.
    """
    if noise_on not in ("text", "image", "all"):
        raise ValueError(f"expected noise_on 'text', 'image' or 'all', got {noise_on!r}")
    if noise_on == "all":
        return torch.ones_like(prompt.media)
    if noise_on == "text":
        return ~prompt.media
    if not prompt.media.any():
        raise ValueError(
            "noise_on='image' needs positions that hold an image's features, but this prompt has "
            "none (nor has any in a model that reads images by cross-attention): pass a sample "
            "with an image, or use noise_on='text'"
        )
    return prompt.media


class Noise:
    """A hook that adds noise to all rows of a batch but the first, another to each.

    Args:
        where: The positions that get noise. It is drawn for all of them, so that a position's noise
            does not depend on this.
        alpha: The noise's standard deviation.
        seed: For the noise, drawn on the CPU row by row.

    Example:
        >>> noise = Noise(torch.tensor([True, False]), alpha=5.0, seed=0)
        >>> (noise(torch.zeros(3, 2, 1), hook=None) != 0)[..., 0]
        tensor([[False, False],
                [ True, False],
                [ True, False]])
    """

    def __init__(self, where: Bool[Tensor, " pos"], *, alpha: int | float, seed: int) -> None:
        self._scale = alpha * where[:, None]
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, tensor: Float[Tensor, "row pos d"], hook: HookPoint | None) -> Tensor:  # noqa: ARG002
        """Returns the rows with noise, which is added in at least float32."""
        noisy = [self._with_noise(row).to(row.dtype) for row in tensor[1:]]
        return torch.stack([tensor[0], *noisy])

    def _with_noise(self, row: Float[Tensor, "pos d"]) -> Float[Tensor, "pos d"]:
        noise = self._scale * torch.randn(row.shape, generator=self._generator)
        return row.to(_wide(row)) + noise.to(row.device, _wide(row))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def differences(
    model: HookedVLM, prompt: Prompt, noise: Noise, *, names: list[str], copies: Sequence[int]
) -> dict[str, Float[Tensor, "pos d"]]:
    """How far each entry is from where it is without noise, summed over noisy copies.

    The clean prompt is the first row of every batch, so that what the noise does not reach is as
    exactly the same as rows of one batch are. What comes before `hook_embed` runs once.

    Args:
        model: The model.
        prompt: What it runs on.
        noise: What each copy gets.
        names: Hook points with a neuron dimension at the prompt's positions.
        copies: How many copies run in each batch.

    Returns:
        The sums by hook point, in at least float32, without hook points that never fired.

    Raises:
        ValueError: A hook point has other axes.
    """
    sums: dict[str, Tensor] = {}

    def add(tensor: Tensor, hook: HookPoint) -> None:
        name = str(hook.name)
        rows = flat_heads(name, tensor)
        if rows.ndim != 3 or rows.shape[1] != len(prompt.tokens):
            raise ValueError(
                f"expected sites with a neuron dimension at the prompt's {len(prompt.tokens)} "
                f"positions, got {name!r} of shape {tuple(tensor.shape)}"
            )
        rows = rows.to(_wide(tensor))
        moved = (rows[1:] - rows[:1]).abs_().sum(0)
        sums[name] = sums[name].add_(moved) if name in sums else moved

    replay = replay_below(model, [EMBED])
    for n in (0, *copies):  # first the clean prompt alone
        hooks = [(EMBED, noise), (names, add)]
        with replay.running(copies=n + 1):
            model.run_with_hooks(
                in_copies(prompt.arguments, n + 1),
                fwd_hooks=hooks,
                return_type=None,
                use_cache=False,
            )
        names = list(sums)
    return sums

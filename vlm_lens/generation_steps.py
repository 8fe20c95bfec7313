"""The steps of Hugging Face's decoding loop, followed from outside; their activations joined."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin

from vlm_lens.activations import came_twice
from vlm_lens.inputs.owners import rows_are_samples


def check_positions(architecture: str, mask: Int[Tensor, "batch pos"] | None) -> None:
    """Refuse what Hugging Face generates at other positions than a forward has."""
    is_padded = mask is not None and not mask.bool().all()
    if architecture == "Kosmos2ForConditionalGeneration" and is_padded:
        raise ValueError(
            "In Kosmos-2, Hugging Face's generate counts padding among the positions of new "
            "tokens, a forward does not, so that what is kept would not be what a forward over "
            "the answer has: pass prompts one by one, or of the same length."
        )


@dataclass
class Loop:
    """Hugging Face's decoding loop, as far as it has come.

    Attributes:
        model: The model it runs: the language model alone in BLIP and Kosmos-2.
        arguments: What it hands from step to step: masks, positions, the key-value cache.
        n_steps: How often it has run the model.
    """

    model: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)
    n_steps: int = 0

    def follow(self, model: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Takes the place of the method that carries the arguments on to the next step."""
        self.model, self.n_steps = model, self.n_steps + 1
        self.arguments = type(model)._update_model_kwargs_for_generation(model, *args, **kwargs)
        return self.arguments

    @torch.no_grad()
    def read_last(self, tokens: Int[Tensor, "batch pos"]) -> None:
        """Run the token that was produced last, after everything before it."""
        step = self.model.prepare_inputs_for_generation(
            tokens, next_sequence_length=1, **self.arguments
        )
        self.model(**step, return_dict=True)


@contextmanager
def followed(hf_model: Any) -> Iterator[Loop]:
    """Follow `generate`, on whichever model inside it runs its loop.

    Families carry different things from step to step: rotary positions on three axes, masks of
    cross-attention, token types. Only the loop itself has them all.
    """
    loop = Loop()
    generating = [module for module in hf_model.modules() if isinstance(module, GenerationMixin)]
    for module in generating:
        vars(module)["_update_model_kwargs_for_generation"] = partial(loop.follow, module)
    try:
        yield loop
    finally:
        for module in generating:
            del vars(module)["_update_model_kwargs_for_generation"]


def joined(name: str, parts: list[Tensor], n_new: int) -> Tensor:
    """One activation from its steps: the prompt's positions, then one position a step."""
    if len(parts) == 1:  # encoders and projector, and what cross-attention reads of them
        return parts[0]
    if not rows_are_samples(name):
        raise came_twice(name)
    if len(parts) != n_new + 1:
        raise RuntimeError(
            f"{name!r} came by {len(parts)} times for a prompt and {n_new} new tokens, so it is "
            "not known which position each was: generate with other options."
        )
    if name.endswith("hook_rot_k"):  # each step holds the keys of earlier positions too
        return torch.cat([parts[0], *(part[:, -1:] for part in parts[1:])], dim=1)
    if name.endswith(("hook_pattern", "hook_attn_scores")) and "cross_attn" not in name:
        masked = 0.0 if name.endswith("hook_pattern") else torch.finfo(parts[0].dtype).min
        n_keys = parts[0].shape[-1] + n_new
        # Keys end with the step's own position; those before a sliding window are not there.
        padded = [
            F.pad(part, (n_keys - (n_new - i) - part.shape[-1], n_new - i), value=masked)
            for i, part in enumerate(parts)
        ]
        return torch.cat(padded, dim=-2)
    return torch.cat(parts, dim=-2 if name.endswith(("hook_pattern", "hook_attn_scores")) else 1)

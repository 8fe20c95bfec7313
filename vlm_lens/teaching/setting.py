"""What the exercises are about: a model, a picture, a question, and one run of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlm_lens.cache import ActivationCache
from vlm_lens.inputs import Inputs, TokenMap
from vlm_lens.model import HookedVLM
from vlm_lens.teaching.moving import moved_by_head
from vlm_lens.teaching.pairs import make_pairs


@dataclass(frozen=True)
class Setting:
    """A prompt and what it makes of a model.

    Attributes:
        model: The model.
        inputs: The prompt.
    """

    model: HookedVLM
    inputs: Inputs

    @classmethod
    def of(cls, model: HookedVLM, picture: Image.Image, question: str) -> Setting:
        """A picture with a question."""
        return cls(model, model.prepare(images=picture, text=question))

    @property
    def token_map(self) -> TokenMap:
        """What each position is."""
        return self.inputs.token_map[0]

    @cached_property
    def cache(self) -> ActivationCache:
        """Neurons and attention patterns of the language model."""
        names = ["blocks.*.attn.hook_pattern", "blocks.*.mlp.hook_post"]
        with torch.no_grad():
            return self.model.run_with_cache(self.inputs, names_filter=names)[1]

    @cached_property
    def moved(self) -> dict[str, Float[Tensor, "layer head"]]:
        """What each head moves of a colour and of a shape."""
        return {
            what: moved_by_head(self.model, make_pairs(what)).cpu() for what in ("color", "shape")
        }

"""The activation cache of a vision-language model: TransformerLens' own, and token types."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_lens.cache_stream import StreamCache
from vlm_lens.hooks.heads import PATTERN_SITES, flat_heads
from vlm_lens.hooks.names import HookNameError, nearest_names
from vlm_lens.inputs import TokenMap

_OTHER_AXES = re.compile(
    r"^(vision_encoder|audio_encoder|qformer|projector|decoder)\."
    r"|hook_(attn_scores|pattern)$|cross_attn\.hook_[kv]$"
)
"""Names of activations whose first two axes are not the samples and the prompt's positions."""


class ActivationCache(StreamCache):
    """Activations by hook name, as in TransformerLens, and by token type.

    Everything that TransformerLens' cache does works here (``cache["post", 3]``,
    `decompose_resid`, `logit_attrs` ...). Attention patterns and scores that were not kept are
    computed from the same forward's queries and keys when first asked for, where
    `run_with_cache` ran without a filter.

    Args:
        cache_dict: Activations by hook name.
        model: The `HookedVLM` they are from.
        token_maps: One `TokenMap` for each sample; without them there are no token types.
        deferred: By name, what computes an activation that was not kept.
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        *,
        has_batch_dim: bool = True,
        token_maps: Sequence[TokenMap] | None = None,
        deferred: dict[str, Callable[[], Tensor]] | None = None,
    ) -> None:
        super().__init__(cache_dict, model, has_batch_dim=has_batch_dim)
        self.token_maps = list(token_maps) if token_maps is not None else None
        self._deferred = dict(deferred or {})

    def __getitem__(self, key: Any) -> Tensor:
        try:
            return super().__getitem__(key)
        except KeyError:
            name = self._full_name(key)
        if name in self.cache_dict:
            return self.cache_dict[name]
        if name not in self._deferred:
            near = nearest_names(name, self.cache_dict)
            hint = f" Nearest kept: {', '.join(near)}." if near else ""
            raise HookNameError(
                f"This cache holds {len(self)} activations and none is named {name!r}.{hint} "
                "Name it in `names_filter` to keep it."
            )
        value = self._deferred[name]()
        self.cache_dict[name] = value if self.has_batch_dim else value[0]
        return self.cache_dict[name]

    @property
    def sizes(self) -> dict[str, int]:
        """How many neurons each kept hook point has, as `NeuronSet` asks for it.

        Queries, keys, values and heads' outputs count all heads' channels; attention scores and
        patterns, whose last axis is positions, have no neurons and are left out.
        """
        return {
            name: flat_heads(name, value).shape[-1]
            for name, value in self.cache_dict.items()
            if not name.endswith(PATTERN_SITES)
        }

    def image(self, name: str | tuple, *, batch: int | None = None) -> Tensor:
        """Activations at the image positions, one row a position, sample after sample.

        Args:
            name: A hook name of the language model or TransformerLens' shorthand.
            batch: Only this sample.

        Returns:
            Activations of shape ``[n_image_positions, ...]``.
        """
        return self._at("image", name, batch)

    def text(self, name: str | tuple, *, batch: int | None = None) -> Tensor:
        """Activations at the text positions (special tokens, images and padding left out).

        Returns:
            Activations of shape ``[n_text_positions, ...]``.
        """
        return self._at("text", name, batch)

    def _at(self, kind: Literal["image", "text"], name: str | tuple, batch: int | None) -> Tensor:
        if self.token_maps is None:
            raise ValueError(
                "This cache knows no token types: the model was run on bare tokens. "
                "Run it on what `model.prepare(...)` returns."
            )
        value = self[name] if self.has_batch_dim else self[name][None]
        mask = torch.stack([token_map.mask(kind) for token_map in self.token_maps])
        # Tensors with other axes may have these very sizes by chance.
        if _OTHER_AXES.search(self._full_name(name)) or value.shape[:2] != mask.shape:
            raise ValueError(
                f"Expected an activation at the prompt's positions, [batch, pos, ...] = "
                f"{list(mask.shape)}, but {name!r} is {list(value.shape)}. In the vision encoder "
                "and the projector every position is an image patch, a decoder beside an encoder "
                "has positions of its own, scores and patterns have heads in their place: index "
                "the cache directly."
            )
        samples = slice(None) if batch is None else slice(batch, batch + 1)
        return value[samples][mask[samples].to(value.device)]

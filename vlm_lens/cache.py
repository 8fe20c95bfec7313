"""The activation cache of a vision-language model: TransformerLens' own, and token types."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from transformer_lens.utilities import Slice

from vlm_lens.activations import Activations, without_batch
from vlm_lens.cache_stream import StreamCache
from vlm_lens.hooks.heads import PATTERN_SITES, flat_heads
from vlm_lens.hooks.names import HookNameError, nearest_names
from vlm_lens.inputs import TokenMap
from vlm_lens.inputs.owners import NO_SAMPLE, PositionOwners, rows_are_samples

_OTHER_AXES = re.compile(
    r"^(vision_encoder|audio_encoder|qformer|projector|decoder)\."
    r"|hook_(attn_scores|pattern)(_grad)?$|cross_attn\.hook_[kv](_grad)?$"
)
"""Names of activations whose first two axes are not the samples and the prompt's positions."""


class BatchDimError(ValueError, AssertionError):
    """What is asked of a cache's batch dimension fails; in TransformerLens that is an assertion."""


class ActivationCache(StreamCache):
    """Activations by hook name, as in TransformerLens, and by token type.

    Everything that TransformerLens' cache does works here (``cache["post", 3]``,
    `decompose_resid`, `logit_attrs` ...). Attention patterns and scores that were not kept are
    computed from the same forward's queries and keys when first asked for, where
    `run_with_cache` ran without a filter.

    The batch dimension is that of the samples. Encoders, Q-Former and projector have images, tiles
    or sounds in its place: these keep their axis where it is removed, and follow their samples
    where it is indexed.

    Args:
        cache_dict: Activations by hook name; of `Activations`, some are computed when asked for.
        model: The `HookedVLM` they are from.
        has_batch_dim: Whether activations have the batch dimension.
        token_maps: One `TokenMap` for each sample; without them there are no token types.
        owners: What is known of rows and positions (which are real, and of which sample), or what
            finds that out when it is asked for.
    """

    cache_dict: Any

    def __init__(
        self,
        cache_dict: Mapping[str, Tensor],
        model: Any,
        *,
        has_batch_dim: bool = True,
        token_maps: Sequence[TokenMap] | None = None,
        owners: PositionOwners | Callable[[], PositionOwners | None] | None = None,
    ) -> None:
        found: Any = cache_dict if isinstance(cache_dict, Activations) else Activations(cache_dict)
        super().__init__(found, model, has_batch_dim=has_batch_dim)
        self.token_maps = list(token_maps) if token_maps is not None else None
        self._given_owners = owners

    @cached_property
    def _owners(self) -> PositionOwners | None:
        given = self._given_owners
        return given if given is None or isinstance(given, PositionOwners) else given()

    def __getitem__(self, key: Any) -> Tensor:
        name = key if isinstance(key, str) and key in self.cache_dict else self._full_name(key)
        if name in self.cache_dict:
            return self.cache_dict[name]
        near = nearest_names(name, self.cache_dict)
        hint = f" Nearest kept: {', '.join(near)}." if near else ""
        raise HookNameError(
            f"This cache holds {len(self)} activations and none is named {name!r}.{hint} "
            "Name it in `names_filter` to keep it."
        )

    @property
    def sizes(self) -> dict[str, int]:
        """How many neurons each kept hook point has, as `NeuronSet` asks for it.

        Queries, keys, values and heads' outputs count all heads' channels; attention scores and
        patterns, whose last axis is positions, have no neurons and are left out.
        """
        sites = {name: name.removesuffix("_grad") for name in self.cache_dict}
        return {
            name: flat_heads(site, self.cache_dict[name]).shape[-1]
            for name, site in sites.items()
            if not site.endswith(PATTERN_SITES)
        }

    def to(self, target: torch.device | str | torch.dtype) -> ActivationCache:
        """Move the cache to a device, or turn it into a dtype; in place, as in TransformerLens.

        Attention patterns that have not been asked for yet follow when they are.
        """
        self.cache_dict = self.cache_dict.to(target)
        return self

    # Samples ----------------------------------------------------------------------------------

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> ActivationCache:
        """The cache of some of the samples: their positions, images and tiles, and token maps.

        Args:
            batch_slice: As in TransformerLens: a number (which removes the batch dimension), a
                slice, a tuple, a list, or None for all.

        Raises:
            BatchDimError: There is no batch dimension.
            ValueError: It is not known of which sample each image is, because the model was run on
                bare tensors.
            IndexError: There is no such sample.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> _, cache = model.run_with_cache(["red circle", "what color is the square ?"])
            >>> cache.apply_slice_to_batch_dim(1)["pattern", 0].shape
            torch.Size([4, 7, 7])
        """
        chosen = batch_slice if isinstance(batch_slice, Slice) else Slice(batch_slice)
        if not self.has_batch_dim:
            raise BatchDimError(
                "Expected a cache with a batch dimension to take samples of, but it was removed: "
                "run without remove_batch_dim, or take the samples first."
            )
        numbers = np.atleast_1d(np.arange(self._batch_size())[chosen.slice]).tolist()
        owners = self._known_owners()

        def take(name: str, value: Tensor) -> Tensor:
            if rows_are_samples(name):
                return chosen.apply(value, dim=0)
            return value[owners.rows_of(name, len(value), numbers).to(value.device)]

        return ActivationCache(
            self.cache_dict.changed(take),
            self.model,
            has_batch_dim=chosen.mode != "int",
            token_maps=None if self.token_maps is None else [self.token_maps[i] for i in numbers],
            owners=owners.take(numbers),
        )

    def remove_batch_dim(self, batch_size: int | None = None) -> ActivationCache:
        """Remove the batch dimension of a cache of one sample; in place, as in TransformerLens.

        Images, tiles and sounds are no samples: encoders, Q-Former and projector keep their axis.

        Args:
            batch_size: How many samples there are, if the caller knows; else the cache does.

        Raises:
            BatchDimError: There are several samples.
        """
        n_samples = self._batch_size() if batch_size is None else batch_size
        if self.has_batch_dim and n_samples != 1:
            raise BatchDimError(
                f"Expected a cache of one sample to remove the batch dimension of, got {n_samples} "
                "samples: take one with cache.apply_slice_to_batch_dim(i)."
            )
        if self.has_batch_dim:
            self.cache_dict = self.cache_dict.changed(without_batch)
            self.has_batch_dim = False
        return self

    def _batch_size(self) -> int:
        """How many samples there are."""
        if self._owners is not None:
            return self._owners.n_samples
        kept = (name for name in self.cache_dict if rows_are_samples(name))
        name = next(kept, None)
        if name is None:
            raise ValueError(
                "Expected to know how many samples this cache is of, but it holds nothing of the "
                "language model: make it with run_with_cache."
            )
        return len(self.cache_dict[name])

    def _known_owners(self) -> PositionOwners:
        """What is known of rows and positions; of a cache made by hand, that there are samples."""
        if self._owners is not None:
            return self._owners
        return PositionOwners(real={"": torch.ones(self._batch_size(), 1, dtype=torch.bool)})

    # Positions --------------------------------------------------------------------------------

    def real(self, name: str | tuple) -> Tensor:
        """Activations at every position that there is, one row a position, sample after sample.

        Padding is left out, and so is whatever else only fills a batch up: patches of an image
        smaller than the largest one, tiles of an image that is not there, silence behind a sound.

        Args:
            name: A hook name or TransformerLens' shorthand.

        Returns:
            Activations of shape ``[n_positions, ...]``.

        Raises:
            ValueError: Attention scores and patterns have queries and keys in place of positions.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> _, cache = model.run_with_cache(["red circle", "what color is the square ?"])
            >>> cache["post", 0].shape, cache.real(("post", 0)).shape
            (torch.Size([2, 7, 384]), torch.Size([10, 384]))
        """
        value, full_name = self[name], self._full_name(name).removesuffix("_grad")
        if full_name.endswith(PATTERN_SITES):
            raise ValueError(
                f"Expected a hook point with positions, got {name!r}: scores and patterns are "
                "[batch, head, query, key]."
            )
        if not self.has_batch_dim and rows_are_samples(full_name):
            value = value[None]
        return value[self._real(full_name, value).to(value.device)]

    def _real(self, name: str, value: Tensor) -> Bool[Tensor, "row pos"]:
        if self._owners is None:  # made by hand
            return torch.ones(value.shape[:2], dtype=torch.bool)
        return self._owners.of(name, *value.shape[:2]) != NO_SAMPLE

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
                "This cache knows no token types: the model was run on bare tokens, or some "
                "positions were cut out. Run it on what `model.prepare(...)` returns, without "
                "pos_slice."
            )
        value = self[name] if self.has_batch_dim else self[name][None]
        mask = torch.stack([token_map.mask(kind) for token_map in self.token_maps])
        # Tensors with other axes may have these very sizes by chance.
        within = self._full_name(name)
        if self.model.text is None:  # the positions are those of the tower itself
            within = within.removeprefix("vision_encoder.")
        if _OTHER_AXES.search(within) or value.shape[:2] != mask.shape:
            raise ValueError(
                f"Expected an activation at the prompt's positions, [batch, pos, ...] = "
                f"{list(mask.shape)}, but {name!r} is {list(value.shape)}. In the vision encoder "
                "and the projector every position is an image patch, a decoder beside an encoder "
                "has positions of its own, scores and patterns have heads in their place: index "
                "the cache directly."
            )
        samples = slice(None) if batch is None else slice(batch, batch + 1)
        return value[samples][mask[samples].to(value.device)]

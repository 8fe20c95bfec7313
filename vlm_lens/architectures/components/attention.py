"""Attention as taps: q, k, v and z per head, rotated q and k, scores and pattern."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import einops
from jaxtyping import Float
from torch import Tensor

from vlm_lens.architectures.base import AttentionPaths
from vlm_lens.architectures.components.component import (
    Component,
    Projection,
    n_inputs,
    n_outputs,
)
from vlm_lens.hooks import (
    ArchitectureError,
    AttentionProbe,
    InlineAttentionProbe,
    PatchRows,
    Place,
    Tap,
    View,
    by_head_part,
    heads_view,
    slice_part,
)
from vlm_lens.hooks.copies import HeadResults, InputCopies, ReadBy


class HookedAttention(Component):
    """One attention of a block.

    Attributes:
        norms_heads: Whether what the heads give (`hook_z`) goes through a norm over all of them
            before it is multiplied with `W_O` (Kosmos-2).
        alibi: Whether its scores hold a bias for the distance (BLOOM).

    Args:
        root: What the paths are relative to.
        paths: Where its parts are.
        n_heads: Number of heads.
        n_kv: Number of heads of keys and values.
        patch_rows: Where each patch lies in its tensors, if they are not in the plain layout.
    """

    def __init__(
        self,
        root: Place,
        paths: AttentionPaths,
        *,
        n_heads: int,
        n_kv: int,
        patch_rows: PatchRows | None = None,
    ) -> None:
        place = root.at(paths.module)
        super().__init__(place, patch_rows=patch_rows)
        self.n_heads, self.n_key_value_heads = n_heads, n_kv
        self.norms_heads, self.alibi = paths.z is not None, paths.alibi
        q, k, v = _projections(root, paths, n_heads, n_kv)
        self.projections = {"W_Q": q, "W_K": k, "W_V": v, "W_O": Projection(root.at(paths.o))}
        self.hook_q = self.output_tap(q.place, _by_head(q, n_heads))
        self.hook_k = self.output_tap(k.place, _by_head(k, n_kv))
        self.hook_v = self.output_tap(v.place, _by_head(v, n_kv))
        if paths.inline:
            self.probe = InlineAttentionProbe(place)
        else:
            self.probe = AttentionProbe(
                place,
                rotary=paths.rotary,
                patch_rows=patch_rows if paths.packed else None,
                chunked=paths.chunked,
            )
        if self.probe.rot_q is not None and self.probe.rot_k is not None:
            self.hook_rot_q, self.hook_rot_k = self.probe.rot_q, self.probe.rot_k
        self.hook_attn_scores, self.hook_pattern = self.probe.scores, self.probe.pattern
        self.hook_z = self.input_tap(root.at(paths.z or paths.o), heads_view(n_heads), private=True)

    def head_results(self) -> Tap:
        """A tap on what each head adds to the output.

        Raises:
            ValueError: A norm over all heads comes before the output projection.
        """
        if self.norms_heads:
            raise ValueError(
                f"Expected heads' outputs to be summed and nothing else at {self.place.path!r}, "
                "but a norm over all heads comes first, so that no head's part of the output can "
                "be told: hook `hook_z` and `hook_attn_out`."
            )
        return HeadResults(
            self.projections["W_O"].place,
            n_heads=self.n_heads,
            weight=lambda: self.W_O,
            patch_rows=self.patch_rows,
        ).tap

    def input_copies(self, norm: Place, *, split: bool) -> list[Tap]:
        """Taps on the stream that each head reads, before a norm.

        Args:
            norm: The norm in front of this attention.
            split: Whether queries, keys and values have a copy each, or all the same one.

        Raises:
            ValueError: All are to have the same one, but there are fewer keys than queries.
        """
        if not split and self.n_key_value_heads != self.n_heads:
            raise ValueError(
                f"Expected as many heads of keys and values as of queries for hook_attn_in, but "
                f"{self.place.path!r} has {self.n_key_value_heads} for {self.n_heads}, so that no "
                "copy of the stream belongs to one head: call set_use_split_qkv_input(True)."
            )
        heads = {"W_Q": self.n_heads, "W_K": self.n_key_value_heads, "W_V": self.n_key_value_heads}
        readers = [
            ReadBy(
                self.projections[name].place,
                self.projections[name].view,
                n_heads,
                partial(self._weight, name, n_heads),
            )
            for name, n_heads in heads.items()
        ]
        n_taps = 3 if split else 1
        return InputCopies(norm, readers, n_taps=n_taps, patch_rows=self.patch_rows).taps

    @property
    def widths(self) -> tuple[int, int, int]:
        """Outputs of the projections of queries, keys and values, all heads together."""
        q, k, v = (self.projections[name].n_outputs for name in ("W_Q", "W_K", "W_V"))
        return q, k, v

    @property
    def d_in(self) -> int:
        """Inputs of the output projection."""
        return n_inputs(self.projections["W_O"].module)

    @property
    def d_out(self) -> int:
        """Outputs of the output projection."""
        return self.projections["W_O"].n_outputs

    def _weight(self, name: str, n_heads: int) -> Float[Tensor, "head d_model d_head"]:
        return einops.rearrange(self.projections[name].weight, "d (h e) -> h d e", h=n_heads)

    def _bias(self, name: str, n_heads: int) -> Float[Tensor, "head d_head"]:
        return self.projections[name].bias.unflatten(0, (n_heads, -1))

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._weight("W_Q", self.n_heads)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._weight("W_K", self.n_key_value_heads)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._weight("W_V", self.n_key_value_heads)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return einops.rearrange(self.projections["W_O"].weight, "(h e) d -> h e d", h=self.n_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self._bias("W_Q", self.n_heads)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        return self._bias("W_K", self.n_key_value_heads)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return self._bias("W_V", self.n_key_value_heads)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return self.projections["W_O"].bias


def _by_head(projection: Projection, n_heads: int) -> View:
    heads = heads_view(n_heads)
    return heads if projection.view is None else projection.view.then(heads)


def _projections(
    root: Place, paths: AttentionPaths, n_heads: int, n_kv: int
) -> tuple[Projection, Projection, Projection]:
    if paths.q is not None and paths.k is not None and paths.v is not None:
        q, k, v = (root.at(path) for path in (paths.q, paths.k, paths.v))
        return Projection(q), Projection(k), Projection(v)
    if paths.qkv is None:
        raise ArchitectureError(f"Expected q, k and v or qkv in the record, got {paths}.")
    fused = root.at(paths.qkv)
    d_head = n_outputs(fused.module) // (n_heads + 2 * n_kv)
    if paths.by_head:
        parts = [by_head_part(n_heads, which, 3, n_heads * d_head) for which in range(3)]
    else:
        ends = [0, n_heads * d_head, (n_heads + n_kv) * d_head, n_outputs(fused.module)]
        parts = [slice_part(start, stop) for start, stop in pairwise(ends)]
    q, k, v = (Projection(fused, part) for part in parts)
    return q, k, v

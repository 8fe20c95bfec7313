"""A transformer block as taps: the residual stream, attention, cross-attention and MLP."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from vlm_lens.architectures.base import BlockPaths
from vlm_lens.architectures.components.attention import HookedAttention
from vlm_lens.architectures.components.component import Component
from vlm_lens.architectures.components.mlp import HookedMLP
from vlm_lens.architectures.components.norm import HookedNorm
from vlm_lens.hooks import PatchRows, Place, Tap


class HookedBlock(Component):
    """A transformer block: the residual stream before, between and after attention and MLP.

    Where a block attends to an encoder or an image after it attends to itself, `hook_resid_mid` is
    the stream between the two, and `hook_resid_mid_cross` that before the MLP. What a family's
    block lacks is absent, such as a stream between attention and an MLP that runs beside it.
    `hook_attn_out` and `hook_mlp_out` are what is added to the stream, after a norm or a LayerScale
    that is a module of its own, but before a gate or a scale that the block itself multiplies with.

    Args:
        place: Where the Hugging Face block is.
        paths: Where its parts are.
        n_heads: Number of heads.
        n_kv: Number of heads of keys and values.
        patch_rows: Where each patch lies in its tensors, if they are not in the plain layout.
    """

    hook_out_is_single_residual_stream = True
    """Asked by TransformerLens' logit lens: what leaves the block is the stream that it reads."""

    def __init__(
        self,
        place: Place,
        paths: BlockPaths,
        *,
        n_heads: int,
        n_kv: int,
        patch_rows: PatchRows | None = None,
    ) -> None:
        if paths.rows is not None:
            patch_rows = PatchRows(place, paths.rows)
        super().__init__(place, patch_rows=patch_rows)
        self.norm_offset, self.post_norm = paths.norm_offset, paths.post_norm
        self.parallel = paths.parallel
        self._scales = (paths.attn_scale, paths.mlp_scale)
        self.hook_resid_pre = self.input_tap(place)
        self.ln1 = self._norm(paths.ln1)
        if paths.attn is not None:
            self.attn = HookedAttention(
                place, paths.attn, n_heads=n_heads, n_kv=n_kv, patch_rows=patch_rows
            )
            self.hook_attn_out = self._added(paths.ln1_post or paths.attn_scale, paths.attn.o)
        if paths.ln1_post is not None:
            self.ln1_post = self._norm(paths.ln1_post)
        cross = paths.cross_attn is not None and place.at(paths.cross_attn.module).exists
        if cross and paths.ln_cross is not None:
            self.hook_resid_mid = self._stream(paths, before=paths.ln_cross, after=paths.ln1)
            self.ln_cross = self._norm(paths.ln_cross)
        if cross and paths.cross_attn is not None:
            self.cross_attn = HookedAttention(place, paths.cross_attn, n_heads=n_heads, n_kv=n_kv)
            self.hook_cross_attn_out = self._added(None, paths.cross_attn.o)
        self._add_mlp(paths)
        self.hook_resid_post = self.output_tap(place)

    def switched_taps(self, switch: str) -> dict[tuple[nn.Module, str], Tap]:
        """Hook points that are there only on demand, by the component and the name they go to.

        Args:
            switch: `use_attn_result`, `use_split_qkv_input`, `use_attn_in` or `use_hook_mlp_in`.

        Raises:
            ValueError: The block does not compute what would be shown.
        """
        if switch == "use_hook_mlp_in":
            return {(self, "hook_mlp_in"): self.input_tap(self.ln2.place)}
        if not hasattr(self, "attn"):
            return {}
        if switch == "use_attn_result":
            return {(self.attn, "hook_result"): self.attn.head_results()}
        split = switch == "use_split_qkv_input"
        names = ("hook_q_input", "hook_k_input", "hook_v_input") if split else ("hook_attn_in",)
        taps = self.attn.input_copies(self.ln1.place, split=split)
        return {(self.attn, name): tap for name, tap in zip(names, taps, strict=True)}

    @property
    def submodules(self) -> dict[str, nn.Module]:
        """The block's parts by name: TransformerLens' path patching looks for `attn` among them."""
        parts = dict(self.named_children())
        norms_heads = "attn" in parts and self.attn.norms_heads
        return {**parts, "norm_of_heads": parts["attn"]} if norms_heads else parts

    @property
    def attn_scale(self) -> Float[Tensor, " d_model"] | None:
        """What the attention's output is multiplied with before it is added; None for nothing."""
        return self._scale(self._scales[0])

    @property
    def mlp_scale(self) -> Float[Tensor, " d_model"] | None:
        """The same of the MLP's output."""
        return self._scale(self._scales[1])

    def _scale(self, path: str | None) -> Float[Tensor, " d_model"] | None:
        return None if path is None else next(self.place.at(path).module.parameters())

    @property
    def hook_aliases(self) -> dict[str, str]:
        """Whose output `hook_attn_out` is: path patching refuses a norm after the heads' sum."""
        norms = [name for name in ("norm_of_heads", "ln1_post") if name in self.submodules]
        return {"hook_attn_out": f"{(norms or ['attn'])[0]}.hook_out"}

    def _add_mlp(self, paths: BlockPaths) -> None:
        """The stream before the MLP, the MLP, and what it adds."""
        crossed = hasattr(self, "ln_cross")
        if not paths.parallel:
            self._add_stream_before_mlp(paths, crossed=crossed)
        self.ln2 = self._norm(paths.ln2)
        self.mlp = HookedMLP(self.place, paths.mlp, patch_rows=self.patch_rows)
        self.hook_mlp_out = self._added(paths.ln2_post or paths.mlp_scale, paths.mlp.down)
        if paths.ln2_post is not None:
            self.ln2_post = self._norm(paths.ln2_post)
        if paths.text_mlp is not None and self.place.at(paths.text_mlp.down).exists:
            self.text_mlp = HookedMLP(self.place, paths.text_mlp, patch_rows=self.patch_rows)

    def _add_stream_before_mlp(self, paths: BlockPaths, *, crossed: bool) -> None:
        stream = self._stream(
            paths, before=paths.ln2, after=str(paths.ln_cross) if crossed else paths.ln1
        )
        if crossed:
            self.hook_resid_mid_cross = stream
        else:
            self.hook_resid_mid = stream

    def _norm(self, path: str) -> HookedNorm:
        return HookedNorm(self.place.at(path), offset=self.norm_offset, patch_rows=self.patch_rows)

    def _added(self, after: str | None, linear: str) -> Tap:
        """What attention or MLP adds: its last layer's output, or that of a norm or scale after."""
        return self.output_tap(self.place.at(linear if after is None else after))

    def _stream(self, paths: BlockPaths, *, before: str, after: str) -> Tap:
        """The stream before the next part's norm or, in BERT, what the last part's norm gives."""
        if paths.post_norm:
            return self.output_tap(self.place.at(after))
        return self.shared_input_tap(self.place.at(before))

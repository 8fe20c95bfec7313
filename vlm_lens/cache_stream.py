"""The residual stream in a cache: its parts, and how a norm scales them.

TransformerLens folds a norm's weight into what comes after it when it loads a model, so that there
a norm is a division. Here nothing is folded: the final norm's weight is part of
`HookedVLM.tokens_to_residual_directions`, and what is multiplied with these directions is divided
by a scale and no more, so that the weight counts once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
import transformer_lens
from jaxtyping import Float
from torch import Tensor
from transformer_lens.utilities import Slice, get_act_name

from vlm_lens.hooks.names import canonical
from vlm_lens.parts import decoder_for


def _slice(given: Any) -> Slice:
    """As TransformerLens reads it: an integer takes its axis away, a list of one does not."""
    return given if isinstance(given, Slice) else Slice(given)


def names_of_neuron_outputs(model: Any) -> list[str]:
    """What a cache must hold for `StreamCache.neuron_outputs` of every layer.

    Args:
        model: The model.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> names_of_neuron_outputs(HookedVLM.from_pretrained("shapes-llava"))[:2]
        ['blocks.0.mlp.hook_post', 'blocks.1.mlp.hook_post']
    """
    names = []
    for layer, block in enumerate(model._language.blocks):
        names.append(f"blocks.{layer}.mlp.hook_post")
        if hasattr(block, "ln2_post"):
            names.append(f"blocks.{layer}.ln2_post.hook_scale")
        if not hasattr(block, "attn"):
            names += [f"blocks.{layer}.hook_{kind}" for kind in _OF_A_GATE]
    return names


_AT_ROOT = re.compile(r"blocks\.|ln_final\.|hook_")
"""Names of a decoder's activations without its prefix."""
_OF_A_GATE = ("resid_mid", "mlp_out", "resid_post")

_MODES = ("all", "mlp", "attn")
_Key = tuple[str, int]
Stack = Float[Tensor, "parts *batch_and_pos d_model"]


class StreamCache(transformer_lens.ActivationCache):
    """TransformerLens' cache, whose parts of the stream add up to it in every family.

    Of an encoder with a decoder, the stream is the decoder's.
    """

    model: Any

    @property
    def _blocks(self) -> Any:
        return self.model._language.blocks

    def _up_to(self, layer: int | None, *, mlp_input: bool = False) -> int:
        """How many layers are before a point of the stream; None and -1 stand for all."""
        n_layers = self.model.cfg.n_layers
        if mlp_input and self._blocks[0].parallel:
            raise ValueError(
                f"Expected no mlp_input for {self.model.cfg.architecture}, whose MLPs read the "
                "stream that attention reads: leave it out."
            )
        if layer is None or layer == -1:
            return n_layers
        if not isinstance(layer, int) or not 0 <= layer <= n_layers:
            raise ValueError(
                f"Expected a layer from 0 to {n_layers}, or -1 or None for the end of the stream, "
                f"got {layer!r}."
            )
        return layer

    def _full_name(self, key: Any) -> str:
        """The hook point that a key means; of an encoder with a decoder, the decoder's."""
        if isinstance(key, str):
            name = key if "." in key else get_act_name(key)
        else:
            layer = key[1] if len(key) > 1 else None
            if layer is not None and layer < 0:
                key = (key[0], self.model.cfg.n_layers + layer, *key[2:])
            name = get_act_name(*key)
        of_decoder = self.model.cfg.is_encoder_decoder and _AT_ROOT.match(name)
        return canonical(f"decoder.{name}" if of_decoder else name)

    # Streams ----------------------------------------------------------------------------------

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Any = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """The residual stream before each layer, up to one.

        Args:
            layer: The last layer; by default all, and what enters the final norm.
            incl_mid: Also the stream between a block's parts.
            apply_ln: Divide by the scale of the norm that comes after: of `layer`, or, with all
                layers, of the final norm for each stream anew. The norm's weight is left out: it
                is in `tokens_to_residual_directions`. For the logits of all tokens, call
                `logit_lens`, or ``model.unembed(model.ln_final(stream))``.
            pos_slice: Only these positions.
            mlp_input: Also the stream that enters the MLP of `layer`.
            return_labels: Also return the names of the streams.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> logits, cache = model.run_with_cache("is there a red circle ? answer :")
            >>> streams = cache.accumulated_resid(apply_ln=True, pos_slice=-1)
            >>> by_layer = streams[:, 0] @ model.tokens_to_residual_directions("no")
            >>> bool((by_layer[-1] - logits[0, -1, model.to_single_token("no")]).abs() < 1e-3)
            True
        """
        last, positions = self._up_to(layer, mlp_input=mlp_input), _slice(pos_slice)
        named = list(self._streams(last, incl_mid, mlp_input))
        stack = torch.stack([positions.apply(self[name], dim=-2) for _, name in named])
        if apply_ln and last == self.model.cfg.n_layers:
            stack = self.model._language.ln_final.normalized(stack)
        elif apply_ln:
            stack = self.apply_ln_to_stack(stack, last, mlp_input, positions)
        return (stack, [label for label, _ in named]) if return_labels else stack

    def _streams(self, last: int, incl_mid: bool, mlp_input: bool) -> Iterator[tuple[str, Any]]:
        """Labels, as in TransformerLens, and keys of the streams up to a layer."""
        for layer, block in enumerate(self._blocks[: last + 1]):
            yield f"{layer}_pre", ("resid_pre", layer)
            if (incl_mid and layer < last) or (mlp_input and layer == last):
                for name in ("resid_mid", "resid_mid_cross"):
                    if hasattr(block, f"hook_{name}"):
                        yield f"{layer}_{name.removeprefix('resid_')}", (name, layer)
        if last == len(self._blocks):
            yield "final_post", ("resid_post", last - 1)

    def logit_lens(self, **kwargs: Any) -> Any:
        """What each stream would be decoded to: TransformerLens' logit lens on this cache.

        See `transformer_lens.tools.analysis.logit_lens` for the options; `vlm_lens.analyses`
        has a logit lens for the positions of an image, and figures of it.

        Raises:
            ValueError: The text model is an encoder with a decoder.
        """
        instead = (
            "Use accumulated_resid(apply_ln=True) @ model.tokens_to_residual_directions(tokens)."
        )
        decoder_for(self.model, "TransformerLens' logit lens", instead=instead)
        return super().logit_lens(**kwargs)

    # Parts ------------------------------------------------------------------------------------

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: Literal["all", "mlp", "attn"] = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """What the embedding and each layer's parts add to the stream that enters a layer.

        As in TransformerLens, and with what it does not know: what cross-attention adds
        (``0_cross_attn_out``), and what Qwen3-VL adds at images after its first layers
        (``0_deepstack``).

        Args:
            layer: All layers before this one; by default all.
            mlp_input: Also attention of `layer`, for the stream that enters its MLP.
            mode: Only the parts of attention or of the MLPs, or all.
            apply_ln: Divide by the scale of the norm that comes after, of this forward.
            pos_slice: Only these positions.
            incl_embeds: Also the embedding, and positions where they are added to it.
            return_labels: Also return the names of the parts.
        """
        last, positions = self._up_to(layer, mlp_input=mlp_input), _slice(pos_slice)
        parts = self._parts(last, mlp_input, mode=mode, incl_embeds=incl_embeds)
        stack = self._scaled(parts, last, mlp_input, positions, apply_ln)
        return (stack, list(parts)) if return_labels else stack

    def _parts(
        self, layer: int, mlp_input: bool, *, mode: str = "all", incl_embeds: bool = True
    ) -> dict[str, Tensor]:
        """What is added to the stream before a layer, or before its MLP, by label."""
        if mode not in _MODES:
            raise ValueError(f"Expected mode to be one of {', '.join(_MODES)}, got {mode!r}.")
        parts = {}
        for name in ("embed", "pos_embed") if incl_embeds else ():
            if hasattr(self.model._language, f"hook_{name}"):
                parts[name] = self[f"hook_{name}"]
        for index, block in enumerate(self._blocks[: layer + mlp_input]):
            for kind, name, upper, lower in self._added(index, block):
                if mode in ("all", kind) and (index < layer or kind == "attn"):
                    value = self[upper] if lower is None else self[upper] - self[lower]
                    parts[f"{index}_{name}"] = value
        return parts

    def _scaled(
        self,
        parts: Mapping[str, Tensor],
        layer: int,
        mlp_input: bool,
        positions: Slice,
        apply_ln: bool,
    ) -> Stack:
        """Parts at some positions as a stack, divided by the scale of a norm or not."""
        stack = torch.stack([positions.apply(part, dim=-2) for part in parts.values()])
        return self.apply_ln_to_stack(stack, layer, mlp_input, positions) if apply_ln else stack

    def _added(self, layer: int, block: Any) -> Iterator[tuple[str, str, _Key, _Key | None]]:
        """Kind and name of what a block adds, in order, and the keys of it or of its ends."""
        if hasattr(block, "attn"):
            yield "attn", "attn_out", ("attn_out", layer), None
            if hasattr(block, "cross_attn"):
                yield "attn", "cross_attn_out", ("cross_attn_out", layer), None
            yield "mlp", "mlp_out", ("mlp_out", layer), None
        else:  # Mllama's blocks that attend to the image multiply what they add with gates
            middle = ("resid_mid", layer)
            yield "attn", "cross_attn_out", middle, ("resid_pre", layer)
            yield "mlp", "mlp_out", ("resid_post", layer), middle
        if layer < min(self._n_deepstack, len(self._blocks) - 1):
            yield "deepstack", "deepstack", ("resid_pre", layer + 1), ("resid_post", layer)

    @property
    def _n_deepstack(self) -> int:
        """After how many layers features of an image's encoder are added."""
        return len(getattr(getattr(self.model, "projector", None), "deepstack", ()))

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, list[str]]:
        """What each head, each neuron, the embedding and all biases add, as in TransformerLens.

        Where there are parts that TransformerLens does not know (see `decompose_resid`), they come
        last.
        """
        last, positions = self._up_to(layer, mlp_input=mlp_input), _slice(pos_slice)
        found: Any = super().get_full_resid_decomposition(
            last,
            mlp_input,
            expand_neurons,
            apply_ln,
            positions,
            return_labels=True,
            project_output_onto=project_output_onto,
        )
        stack, labels = found
        known = ("attn_out", "mlp_out", *(["embed"] if self.has_embed else []))
        others = {
            name: part
            for name, part in self._parts(last, mlp_input).items()
            if not name.endswith(known) or name.endswith("cross_attn_out")
        }
        if others:
            more = self._scaled(others, last, mlp_input, positions, apply_ln)
            along = more if project_output_onto is None else more @ project_output_onto
            stack, labels = torch.cat([stack, along]), [*labels, *others]
        return (stack, labels) if return_labels else stack

    # Heads and neurons ------------------------------------------------------------------------

    def _ensure_head_results(self) -> bool:
        """Keep what each head gives before heads are summed; whether it was there already."""
        every = True
        for layer, block in enumerate(self._blocks):
            attention = self._summing(layer, block)
            name = self._full_name(("result", layer))
            if name not in self.cache_dict:
                every = False
                z, weights = self["z", layer], attention.W_O
                dtype = torch.promote_types(z.dtype, weights.dtype)
                self.cache_dict[name] = torch.einsum(
                    "...hd,hdm->...hm", z.to(dtype), weights.to(dtype)
                )
        return every

    def _summing(self, layer: int, block: Any) -> Any:
        """The attention of a block whose heads' outputs are summed and nothing else.

        Raises:
            ValueError: They are not.
        """
        if not hasattr(block, "attn"):
            raise ValueError(
                f"Expected every block to attend to the text, but block {layer} of "
                f"{self.model.cfg.architecture} attends to the image instead, and multiplies what "
                "it adds with a gate: decompose_resid has it as a whole."
            )
        if block.attn.norms_heads:
            raise ValueError(
                f"In {self.model.cfg.architecture} a norm over all heads comes between `hook_z` "
                "and `W_O`, so that no head's part of the output can be told: decompose_resid has "
                "attention as a whole."
            )
        return block.attn

    def stack_head_results(
        self,
        layer: int = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Any = None,
        apply_ln: bool = False,
    ) -> Stack | tuple[Stack, list[str]]:
        """What each head adds to the stream, of all layers before one, as in TransformerLens.

        Where a norm comes between the heads' sum and the stream (Gemma 2 and 3), it is what the
        norm, with the scale it had, makes of each head.
        """
        last, positions = self._up_to(layer), _slice(pos_slice)
        self._ensure_head_results()
        stream = positions.apply(self["resid_post", last - 1] if last else self["resid_pre", 0], -2)
        rows = [self._by_head(index, positions) for index in range(last)]
        stack = torch.cat(rows) if rows else stream.new_zeros(0, *stream.shape)
        heads = range(self.model.cfg.n_heads)
        labels = [f"L{index}H{head}" for index in range(last) for head in heads]
        if incl_remainder:
            stack = torch.cat([stack, (stream - stack.sum(0))[None]])
            labels.append("remainder")
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, pos_slice=positions)
        return (stack, labels) if return_labels else stack

    def _by_head(self, layer: int, positions: Slice) -> Float[Tensor, "head *batch_and_pos d"]:
        result = positions.apply(self["result", layer], dim=-3).movedim(-2, 0)
        norm = getattr(self._blocks[layer], "ln1_post", None)
        if norm is None:
            return result
        return result * norm.w / positions.apply(self["scale", layer, "ln1_post"], dim=-2)

    def get_neuron_results(
        self,
        layer: int,
        neuron_slice: Any = None,
        pos_slice: Any = None,
        project_output_onto: Tensor | None = None,
    ) -> Tensor:
        """What each neuron of a layer adds to the stream, as in TransformerLens.

        Where a norm or a gate comes between the MLP and the stream, it is what that makes of each
        neuron's output, see `neuron_outputs`.

        Args:
            layer: The layer.
            neuron_slice: Only these neurons.
            pos_slice: Only these positions.
            project_output_onto: A direction or several, [d_model] or [d_model, n]: the parts along
                these instead of vectors.
        """
        neurons, positions = _slice(neuron_slice), _slice(pos_slice)
        acts, outputs = self.neuron_outputs(layer)
        acts = neurons.apply(positions.apply(acts, dim=-2), dim=-1)
        outputs = neurons.apply(outputs, dim=0)
        if project_output_onto is None:
            return acts[..., None] * outputs
        along = outputs @ project_output_onto
        return acts * along if project_output_onto.ndim == 1 else acts[..., None] * along

    def neuron_outputs(
        self, layer: int
    ) -> tuple[Float[Tensor, "*batch_and_pos d_mlp"], Float[Tensor, "d_mlp d_model"]]:
        """Factors and vectors whose products are what a layer's neurons add to the stream.

        They are activations and `W_out`, with the norm (Gemma 2 and 3) or the gate (Mllama) that
        comes between the MLP and the stream. `names_of_neuron_outputs` are what this needs kept.

        Args:
            layer: The layer.
        """
        acts, block = self["post", layer], self._blocks[layer]
        if hasattr(block, "ln2_post"):
            return acts / self["scale", layer, "ln2_post"], block.mlp.W_out * block.ln2_post.w
        if hasattr(block, "attn"):
            return acts, block.mlp.W_out
        given, added = self["mlp_out", layer], self["resid_post", layer] - self["resid_mid", layer]
        gate = (given * added).sum(-1, keepdim=True) / given.square().sum(-1, keepdim=True)
        return acts * gate, block.mlp.W_out

    def _stack_neuron_results_apply_ln_projected(
        self,
        layer: int,
        pos_slice: Slice,
        neuron_slice: Slice,
        project_2d: Float[Tensor, "d_model n"],
        mlp_input: bool = False,
    ) -> Float[Tensor, "neurons *batch_and_pos n"]:
        """Neurons along directions, after a norm; [d_mlp, d_model] outputs are never expanded."""
        scale = self._get_cached_ln_scale(layer, mlp_input, pos_slice)
        if self._uses_ln_centering(layer):  # to take the mean off is its own transpose
            project_2d = project_2d - project_2d.mean(0)
        results = [
            self.get_neuron_results(index, neuron_slice, pos_slice, project_2d) / scale[..., None]
            for index in range(layer)
        ]
        if not results:
            return scale.new_zeros(0, *scale.shape[:-1], project_2d.shape[1])
        return torch.cat(results, dim=-2).movedim(-2, 0)

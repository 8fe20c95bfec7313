"""Circuits of the attention heads, and all weights by TransformerLens' names.

Where queries outnumber keys and values, `W_K` and `W_V` have one entry for each head that the model
stores, as in `TransformerBridge`; in what pairs heads (`OV`, `QK`, composition scores,
`tl_parameters`), the stored heads are repeated, so that entry ``h`` belongs to query head ``h``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import FactoredMatrix
from transformer_lens.model_bridge.composition_scores import CompositionScores
from transformer_lens.utilities import composition_scores

from vlm_lens.lens_surface import LensSurface
from vlm_lens.loss import next_token_loss
from vlm_lens.parts import decoder_for, text_for

_OF_ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
_OF_MLP = ("W_in", "W_gate", "W_out", "b_in", "b_gate", "b_out")
_OF_KEYS_AND_VALUES = ("W_K", "W_V", "b_K", "b_V")


class LensCircuits(LensSurface):
    """Circuits, labels and parameters of a `HookedVLM`, named as in TransformerLens."""

    @property
    def OV(self) -> FactoredMatrix:
        """What each head moves, ``W_V @ W_O``: [layer, head, d_model, d_model], factored.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> model.OV[2, 0].shape
            torch.Size([128, 128])
        """
        return FactoredMatrix(self._for_each_query_head(self.W_V), self.W_O)

    @property
    def QK(self) -> FactoredMatrix:
        """What each head attends by, ``W_Q @ W_K.T``: [layer, head, d_model, d_model], factored.

        Rotations by position, and norms of queries and keys (Qwen3, Gemma 3), come between the two
        and are not in it.
        """
        return FactoredMatrix(self.W_Q, self._for_each_query_head(self.W_K).transpose(-2, -1))

    def _for_each_query_head(self, stored: Tensor, *, axis: int = 1) -> Tensor:
        """Weights of keys or values by query head: those that share a stored head, repeated."""
        return stored.repeat_interleave(self.cfg.n_heads // stored.shape[axis], dim=axis)

    def all_composition_scores(self, mode: str) -> CompositionScores:
        """How much each head's output feeds the queries, keys or values of each later one.

        As in "A Mathematical Framework for Transformer Circuits", from weights alone.

        Args:
            mode: Which input of the later head: ``"Q"``, ``"K"`` or ``"V"``.

        Returns:
            Scores of shape [layer, head, later layer, later head], 0 where it is not later.

        Raises:
            ValueError: The mode is another, or not all blocks have heads that attend to the text,
                or the text model is an encoder with a decoder.
        """
        if mode not in ("Q", "K", "V"):
            raise ValueError(f"Expected mode 'Q', 'K' or 'V', got {mode!r}.")
        decoder_for(self, "scores of composition")
        reads = {"Q": lambda: self.QK, "K": lambda: self.QK.T, "V": lambda: self.OV}[mode]()
        scores: Any = composition_scores(self.OV, reads, broadcast_dims=True)
        layers = torch.arange(self.cfg.n_layers, device=scores.device)
        later = layers[:, None, None, None] < layers[None, None, :, None]
        return CompositionScores(
            scores=torch.where(later, scores, 0),
            layer_indices=layers.tolist(),
            head_labels=self.all_head_labels,
        )

    @property
    def all_head_labels(self) -> list[str]:
        """``L0H0``, ``L0H1`` ...; of an encoder with a decoder ``EL0H0`` ... and ``DL0H0`` ..."""
        heads = range(self.cfg.n_heads)
        if not self.cfg.is_encoder_decoder:
            return [f"L{layer}H{head}" for layer in range(self.cfg.n_layers) for head in heads]
        return [
            f"{part}L{layer}H{head}"
            for part, stack in (("E", self.encoder), ("D", self.decoder))
            for layer in range(len(stack.blocks))
            for head in heads
        ]

    def tl_parameters(self) -> dict[str, Tensor]:
        """The language model's weights by TransformerLens' names, as its tools read them.

        Keys and values are by query head. A norm's ``w`` is what it multiplies with, also in Gemma.
        Of an encoder with a decoder, they are the decoder's.

        Example:
            >>> from transformer_lens import SVDInterpreter
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> SVDInterpreter(model).get_singular_vectors("OV", 2, head_index=0).shape
            torch.Size([72, 1, 10])
        """
        return dict(self.tl_named_parameters())

    def tl_named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """As `tl_parameters`, one after the other."""
        yield "embed.W_E", self.W_E
        for layer, block in enumerate(self._language.blocks):
            for part, names in (("attn", _OF_ATTENTION), ("mlp", _OF_MLP), *_NORMS):
                component = getattr(block, part, None)
                for name in names:
                    weight = getattr(component, name, None)
                    if weight is not None:
                        keyed = name in _OF_KEYS_AND_VALUES
                        value = self._for_each_query_head(weight, axis=0) if keyed else weight
                        yield f"blocks.{layer}.{part}.{name}", value
        norm = self._language.ln_final
        yield from (("ln_final.w", norm.w), ("ln_final.b", norm.b))
        yield from (("unembed.W_U", self.W_U), ("unembed.b_U", self.b_U))

    @property
    def n_params_total(self) -> int:
        """Number of parameters of the whole Hugging Face model; tied ones count once."""
        return sum(parameter.numel() for parameter in self.hf_model.parameters())

    @property
    def adapter(self) -> Any:
        """Where TransformerLens' logit lens looks for a cap on logits: the unembedding."""
        text_for(self, "an unembedding")
        return self.unembed

    def loss_fn(
        self,
        logits: Float[Tensor, "batch pos d_vocab"],
        tokens: Int[Tensor, "batch pos"],
        attention_mask: Int[Tensor, "batch pos"] | None = None,
        per_token: bool = False,
    ) -> Float[Tensor, ""] | Float[Tensor, "batch predicted"]:
        """The mean cross entropy of the next token, as ``return_type="loss"`` computes it.

        Args:
            logits: What the model made of the tokens.
            tokens: What it was run on; positions of images are not scored.
            attention_mask: 0 where a token only fills up.
            per_token: One loss for each predicted position, 0 where it does not count.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> tokens = model.to_tokens("is there a red circle ?")
            >>> bool(model.loss_fn(model(tokens), tokens) == model(tokens, return_type="loss"))
            True
        """
        text = text_for(self, "a loss")
        arguments: dict[str, Any] = {text.keyword("input_ids"): tokens}
        if attention_mask is not None:
            arguments[text.keyword("attention_mask")] = attention_mask
        return next_token_loss(logits, arguments, tokens, self.cfg, per_token=per_token)


_NORMS = (("ln1", ("w", "b")), ("ln2", ("w", "b")))

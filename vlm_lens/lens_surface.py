"""What TransformerLens' tools read of a model: tokens, and weights under TransformerLens' names.

Weights are the Hugging Face weights, reshaped and never folded. The one place where folding matters
is `tokens_to_residual_directions`, which takes the final norm's weight in, so that TransformerLens'
`logit_attrs` adds up to the model's own logits. Of an encoder-decoder model, the weights are those
of the decoder; the encoder's are at ``model.encoder.blocks``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.architectures.components import HookedEmbed, HookedNorm, HookedUnembed
from vlm_lens.config import HookedVLMConfig
from vlm_lens.hooked_root import TapRoot
from vlm_lens.inputs import Inputs
from vlm_lens.inputs.media import tokenizer_of
from vlm_lens.inputs.padding import PadToken, Side, pad_id, padding_side
from vlm_lens.inputs.words import check_text, warn_of_unknown_words
from vlm_lens.keywords import knows_its_keywords
from vlm_lens.parts import Text, text_for


class LensSurface(TapRoot):
    """Tokenisation and weights of a `HookedVLM`, named as in TransformerLens."""

    cfg: HookedVLMConfig
    processor: Any
    hf_model: Any
    blocks: Any
    ln_final: HookedNorm
    encoder: Any
    decoder: Any
    embed: HookedEmbed
    unembed: HookedUnembed
    text: Text | None
    """The language model; None where the model is a tower alone."""

    # Tokens ---------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer.

        Raises:
            ValueError: The model was wrapped without a processor.
            ArchitectureError: It is a vision tower alone.
        """
        text_for(self, "text")
        if self.processor is None:
            raise ValueError(
                "This needs a tokenizer, but the model was wrapped without a processor. "
                "Pass it: HookedVLM(hf_model, processor=processor)."
            )
        return tokenizer_of(self.processor)

    @knows_its_keywords
    def to_tokens(
        self,
        input: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """Tokens of raw text, as in TransformerLens: no chat template and no image.

        A run of the model on them leaves their padding out.

        Args:
            input: One text or several.
            prepend_bos: Whether the first token is ``<bos>``; by default `cfg.default_prepend_bos`,
                which is what the tokenizer does unless it was set.
            padding_side: ``"left"`` or ``"right"``, where shorter texts are padded; by default on
                the left, or where `tokenizer.padding_side` was set to since it was loaded.
            move_to_device: Whether the tokens go to the model's device.
            truncate: Whether to cut texts at the model's context length.

        Raises:
            ValueError: One of several texts is empty; or there is no pad token, or none that can be
                told from what the texts hold.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> tokens = model.to_tokens(["red circle", "red"])
            >>> model.to_string(tokens)
            ['<bos> red circle', '<pad> <bos> red']
            >>> alone = model("red")[0, -1]
            >>> bool((model(tokens)[1, -1] - alone).abs().max() < 1e-4)
            True
            >>> model.to_str_tokens(model.to_tokens(""))  # an empty text is its <bos>, if anything
            ['<bos>']
        """
        if input == "":
            ids = torch.tensor([self._ids("", prepend_bos)], dtype=torch.long)
            return ids.to(self.cfg.device if move_to_device else None)
        tokens, mask = self._tokenize(input, prepend_bos, padding_side, move_to_device, truncate)
        pad = self._pad_token()
        if pad is not None and not torch.equal(pad.mask(tokens), mask):
            raise ValueError(
                f"Expected a pad token that stands for nothing else in these texts, but "
                f"{self.tokenizer.decode([pad.id])!r} does, so that a run on these tokens could "
                "not tell what is padding: pass the texts themselves to the model, or set "
                "tokenizer.pad_token to a token of its own."
            )
        return tokens

    def _tokenize(
        self,
        text: str | list[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
        truncate: bool = True,
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Tokens and attention mask."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or any(not isinstance(one, str) or not one for one in texts):
            raise ValueError(f"Expected text or a list of texts, none of them empty, got {text!r}.")
        rows = [self._ids(one, prepend_bos) for one in texts]
        if truncate:
            rows = [row[: self.cfg.n_ctx or None] for row in rows]  # 0: there is no fixed length
        side = padding_side or self._padding_side()
        if side not in ("left", "right"):
            raise ValueError(f"Expected padding_side 'left' or 'right', got {padding_side!r}.")
        pad, width = pad_id(self.tokenizer), max(map(len, rows))
        if pad is None and width > min(map(len, rows)):
            raise ValueError(
                "Texts of different lengths need padding, but the tokenizer has neither a pad nor "
                "an eos token: set tokenizer.pad_token, or pass the texts one by one."
            )
        tokens = torch.full((len(rows), width), pad or 0)
        mask = torch.zeros_like(tokens)
        for i, row in enumerate(rows):
            at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
            tokens[i, at], mask[i, at] = torch.tensor(row, dtype=torch.long), 1
        device = self.cfg.device if move_to_device else None
        return tokens.to(device), mask.to(device)

    def _ids(self, text: str, prepend_bos: bool | None) -> list[int]:
        check_text(text)
        ids = self.tokenizer(text)["input_ids"]
        warn_of_unknown_words(self.tokenizer, [(ids, text)])
        if prepend_bos is None:
            if self.cfg.default_prepend_bos == self._tokenizer_prepends_bos():
                return ids
            prepend_bos = self.cfg.default_prepend_bos
        bos = self.tokenizer.bos_token_id
        if prepend_bos and bos is None:
            raise ValueError(
                "Expected a tokenizer with a bos token to prepend, but this one has none: leave "
                "prepend_bos out, or set tokenizer.bos_token."
            )
        if prepend_bos and ids[:1] != [bos]:
            return [bos, *ids]
        return ids[1:] if not prepend_bos and bos is not None and ids[:1] == [bos] else ids

    def _tokenizer_prepends_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    def _padding_side(self) -> Side:
        return "left" if self.processor is None else padding_side(self.tokenizer)

    def _pad_token(self) -> PadToken | None:
        """What pads bare tokens: the tokenizer's pad token, or that of the model's configuration"""
        if self.processor is None:
            return PadToken.of(self.hf_model.config.get_text_config())
        starts = self.cfg.default_prepend_bos
        return PadToken.of(self.tokenizer, starts=starts, side=self._padding_side())

    @knows_its_keywords
    def to_str_tokens(
        self,
        input: str | Inputs | Tensor | np.ndarray | list,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> Any:
        """Each token as a string; for several texts, a list of such lists."""
        if isinstance(input, Inputs):
            rows = [list(token_map.tokens) for token_map in input.token_map]
            return rows if input.batched else rows[0]
        if isinstance(input, list) and input and not isinstance(input[0], int):
            return [self.to_str_tokens(one, prepend_bos, padding_side) for one in input]
        if isinstance(input, str):
            input = self.to_tokens(input, prepend_bos, padding_side)[0]
        ids = torch.as_tensor(input).squeeze()
        if ids.ndim > 1:
            raise ValueError(f"Expected the tokens of one text, got shape {list(ids.shape)}.")
        return self.tokenizer.batch_decode([[token] for token in ids.reshape(-1).tolist()])

    def to_string(self, tokens: Int[Tensor, "*batch pos"] | Sequence[int]) -> str | list[str]:
        """Decode tokens; a batch gives a list."""
        tokens = torch.as_tensor(tokens)
        return (
            self.tokenizer.batch_decode(tokens)
            if tokens.ndim == 2
            else self.tokenizer.decode(tokens)
        )

    def to_single_token(self, string: str) -> int:
        """The id of a string that is one token.

        Raises:
            ValueError: It is not one token; the message shows how it is split.
        """
        ids = self._ids(string, prepend_bos=False)
        if len(ids) != 1:
            pieces = self.tokenizer.batch_decode([[token] for token in ids])
            raise ValueError(f"Expected a single token, but {string!r} is {len(ids)}: {pieces}.")
        return ids[0]

    def to_single_str_token(self, int_token: int) -> str:
        """The string of one token id."""
        return self.tokenizer.decode([int_token])

    def get_token_position(
        self,
        single_token: str | int,
        input: str | Int[Tensor, "*one pos"] | Mapping[str, Tensor],
        mode: str = "first",
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> int:
        """Where a token stands in a prompt.

        Args:
            single_token: A token's id, or a string that is one token.
            input: Text, the tokens of one prompt, or what `prepare` returns for one.
            mode: Which one is wanted, if there are several: the ``"first"`` or the ``"last"``.
            prepend_bos: For text, as in `to_tokens`.
            padding_side: For text, as in `to_tokens`.

        Raises:
            ValueError: The token is not there, the input holds several prompts, or the mode is
                another.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> model.get_token_position("circle", "what color is the circle ?")
            5
        """
        if mode not in ("first", "last"):
            raise ValueError(f"Expected mode 'first' or 'last', got {mode!r}.")
        if isinstance(input, str):
            tokens = self.to_tokens(input, prepend_bos, padding_side)
        else:
            tokens = input["input_ids"] if isinstance(input, Mapping) else input
        if tokens.ndim > 2 or (tokens.ndim == 2 and len(tokens) != 1):
            raise ValueError(f"Expected the tokens of one prompt, got shape {list(tokens.shape)}.")
        if isinstance(single_token, str):
            single_token = self.to_single_token(single_token)
        found = (tokens.reshape(-1) == single_token).nonzero().flatten().tolist()
        if not found:
            text = self.to_single_str_token(int(single_token))
            raise ValueError(f"Token {single_token} ({text!r}) does not occur in the prompt.")
        return found[0] if mode == "first" else found[-1]

    # Directions and biases ------------------------------------------------------------------

    def tokens_to_residual_directions(
        self,
        tokens: str | int | Int[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch d_model"]:
        """What to multiply the scaled residual stream with, to get the logits of these tokens.

        With ``r`` the last residual stream and ``s`` the final norm's scale (`hook_scale`),
        ``(r / s) @ direction`` is the token's logit, but for a constant: the norm's bias times the
        token's column of `W_U`, and `b_U`, where the model has such biases. A column of `W_U`
        times the norm's weight is that direction after an RMS norm. A LayerNorm takes the mean off
        ``r``; to do so is linear and its own transpose, so that the mean of the direction is taken
        off instead. What T5 scales its decoder's output by is part of the direction. Where logits
        are capped (PaliGemma 2), it is the logit before the cap.

        Args:
            tokens: Token ids of any shape, or a string that is one token.

        Raises:
            ValueError: The model predicts no such token.

        Example:
            >>> from vlm_lens import HookedVLM
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> logits, cache = model.run_with_cache("what color")
            >>> scaled = cache["resid_post", -1] / cache["ln_final.hook_scale"]
            >>> read = scaled @ model.tokens_to_residual_directions("red")
            >>> bool((read - logits[..., model.to_single_token("red")]).abs().max() < 1e-3)
            True
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        ids, n = torch.as_tensor(tokens), self.cfg.d_vocab_out
        if ((ids < 0) | (ids >= n)).any():
            raise ValueError(f"Expected token ids from 0 to {n - 1}, got {tokens!r}.")
        norm = self._language.ln_final
        directions = self.W_U.T[tokens] * norm.w
        if norm.centers:
            directions = directions - directions.mean(-1, keepdim=True)
        return directions * self.unembed.scale

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the output biases that the residual stream holds on entering a layer.

        Args:
            layer: All layers before this one count.
            mlp_input: Also count this layer's attention, for the stream that enters its MLP.
            include_mlp_biases: Whether the MLPs' biases count.
        """
        if not 0 <= layer <= self.cfg.n_layers or (mlp_input and layer == self.cfg.n_layers):
            raise IndexError(f"Expected a layer of 0 to {self.cfg.n_layers}, got {layer}.")
        blocks = self._language.blocks
        counted = blocks[: layer + 1] if mlp_input else blocks[:layer]
        self._check_attention(counted, "accumulated_bias")
        total = torch.zeros_like(self._language.ln_final.w)
        for block in counted:
            total = total + block.attn.b_O
            if hasattr(block, "cross_attn"):  # of a decoder, which reads its encoder there
                total = total + block.cross_attn.b_O
        for block in blocks[:layer] if include_mlp_biases else ():
            total = total + block.mlp.b_out
        return total

    # Weights --------------------------------------------------------------------------------

    @property
    def _language(self) -> Any:
        """What has the language model's blocks and final norm: the decoder if there is one."""
        return text_for(self, "weights and directions of a language model").stack

    def _check_attention(self, blocks: Any, what: str) -> None:
        lacking = [i for i, block in enumerate(blocks) if not hasattr(block, "attn")]
        if lacking:
            raise ValueError(
                f"Expected every block to attend to the text for {what}, but in "
                f"{self.cfg.architecture} blocks {lacking} attend to the image instead. Take the "
                f"weights block by block: model.blocks[{lacking[0]}].cross_attn.W_Q and, of the "
                "other blocks, attn.W_Q."
            )

    def _stack(self, part: str, name: str) -> Tensor:
        blocks = self._language.blocks
        if part == "attn":
            self._check_attention(blocks, name)
        return torch.stack([getattr(getattr(block, part), name) for block in blocks])

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """Token embedding."""
        text_for(self, "W_E")
        return self.embed.W_E

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """Unembedding, without the final norm's weight."""
        text_for(self, "W_U")
        return self.unembed.W_U

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        text_for(self, "b_U")
        return self.unembed.b_U

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        return self._stack("attn", "W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stack("attn", "W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer kv_head d_model d_head"]:
        return self._stack("attn", "W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        return self._stack("attn", "W_O")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        return self._stack("attn", "b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._stack("attn", "b_K")

    @property
    def b_V(self) -> Float[Tensor, "layer kv_head d_head"]:
        return self._stack("attn", "b_V")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        return self._stack("attn", "b_O")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """Up projections (of a gated MLP: what the gate is multiplied with)."""
        return self._stack("mlp", "W_in")

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model d_mlp"] | None:
        """Gate projections, or None where the MLPs are not gated."""
        return self._stack("mlp", "W_gate") if self.cfg.gated_mlp else None

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        return self._stack("mlp", "W_out")

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        return self._stack("mlp", "b_in")

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        return self._stack("mlp", "b_out")

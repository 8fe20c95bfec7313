"""The token embedding and the unembedding, to be called and read as TransformerLens' are."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.architectures.components.component import Component, Projection, readable
from vlm_lens.hooks import Place
from vlm_lens.hooks.adapters import effective


class HookedEmbed(Component):
    """The token embedding: from tokens to what Hugging Face's model embeds them as."""

    def forward(self, tokens: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """Embed tokens; where the embedding itself scales what it gives (Gemma 3), scaled."""
        return self.hf_module(tokens)

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        """One row a token, as it is stored."""
        embedding = effective(self.hf_module)
        return readable(embedding.weight, embedding)


class HookedUnembed(Component):
    """The unembedding: from what the final norm gives to logits.

    Args:
        place: Where the language-model head is.
        config: The text model's configuration.
        capped: Whether the model caps its logits as that configuration says.
    """

    def __init__(self, place: Place, config: Any, *, capped: bool = False) -> None:
        super().__init__(place)
        self._config, self._capped = (config,), capped
        self.projections = {"W_U": Projection(place)}

    def forward(
        self, normalized: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_vocab"]:
        """Logits of what the final norm gives: ``model.unembed(model.ln_final(resid))``.

        Where a model caps its logits these are the ones before the cap, as in TransformerLens.
        """
        return self.hf_module(normalized * self.scale)

    @property
    def scale(self) -> float:
        """What the model multiplies the final norm's output with; not 1 in some T5."""
        [config] = self._config
        scaled = getattr(config, "scale_decoder_outputs", False)
        return config.d_model**-0.5 if scaled else 1.0

    @property
    def cap(self) -> float | None:
        """What the model caps its logits at, or None."""
        [config] = self._config
        return getattr(config, "final_logit_softcapping", None) if self._capped else None

    def apply_output_logits_transform(
        self, logits: Float[Tensor, "*batch d_vocab"]
    ) -> Float[Tensor, "*batch d_vocab"]:
        """Logits as the model returns them: capped, where it caps them."""
        return logits if self.cap is None else (logits / self.cap).tanh() * self.cap

    @property
    def W_U(self) -> Float[Tensor, "d_model d_vocab"]:
        """One column a token, without the final norm's weight."""
        return self.projections["W_U"].weight

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """The bias, or zeros where there is none."""
        return self.projections["W_U"].bias

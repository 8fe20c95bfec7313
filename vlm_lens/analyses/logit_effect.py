"""What the analyses of one logit have in common: a score per neuron, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vlm_lens.model import HookedVLM
from vlm_lens.results.scores import Scores

MLP_NEURONS = "*mlp.hook_post"
"""The neurons (in TransformerLens' sense) of the language model, vision encoder and projector."""


@dataclass(frozen=True, eq=False, repr=False)
class LogitEffect(Scores):
    """How much each neuron does for one logit of one prompt: positive scores support its token.

    Attributes:
        token: The token whose logit it is.
        position: The position that predicts it, from 0.
        logit: The logit itself, in logits like the scores.
    """

    KIND = "logit_effect"

    token: int = 0
    position: int = 0
    logit: float = 0.0

    def summary(self) -> str:
        """Of how many neurons and which logit, in a line."""
        return (
            f"{sum(self.sizes.values())} neurons at {len(self)} hook points; token {self.token} at "
            f"position {self.position}, logit {self.logit:.3f}"
        )


def chosen_token(
    model: HookedVLM, token: int | str | None, logits: Float[Tensor, "batch d_vocab"]
) -> int:
    """The id of the token to explain: the one given, or else the one that the model predicts.

    Args:
        model: The model, for its tokenizer.
        token: An id, the text of a single token, or None.
        logits: The prediction at the position in question.

    Raises:
        ValueError: The batch holds more than one prompt, or the text is no single token.
        IndexError: There is no token with this id.
    """
    batch, d_vocab = logits.shape
    if batch != 1:
        raise ValueError(
            f"expected one prompt, got a batch of {batch}: the effect on a logit belongs to one "
            "prompt and its answer; call it once for each"
        )
    if token is None:
        return int(logits.argmax())
    chosen = model.to_single_token(token) if isinstance(token, str) else token
    if not 0 <= chosen < d_vocab:
        raise IndexError(f"there is no token {chosen}: the vocabulary has 0 to {d_vocab - 1}")
    return chosen

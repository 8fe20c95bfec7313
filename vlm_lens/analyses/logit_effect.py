"""What the analyses of one logit have in common: a score per neuron, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from vlm_lens.model import HookedVLM
from vlm_lens.neurons import NeuronSet

MLP_NEURONS = "*mlp.hook_post"
"""The neurons (in TransformerLens' sense) of the language model, vision encoder and projector."""


@dataclass(frozen=True, eq=False, repr=False)
class LogitEffect:
    """How much each neuron does for one logit of one prompt.

    Attributes:
        token: The token whose logit it is.
        position: The position that predicts it, from 0.
        logit: The logit itself.
        scores: By hook name, each neuron's part in the logit, in logits and float32; a positive
            score supports the token.
    """

    token: int
    position: int
    logit: float
    scores: dict[str, Float[Tensor, " d"]]

    column: ClassVar[str] = "effect"
    """Name of the scores in tables."""

    def top(self, k: int) -> NeuronSet:
        """The `k` neurons that support the token most, best first.

        Raises:
            ValueError: There are fewer than `k` neurons, or a score is NaN.
        """
        return NeuronSet.from_scores(self.scores, k=k)

    def to_dataframe(self, k: int = 10) -> pd.DataFrame:
        """The `k` best neurons: rank, component, layer, site, index, name and score."""
        best = self.top(k)
        scores = [float(self.scores[neuron.name][neuron.index]) for neuron in best]
        return best.to_dataframe().assign(**{self.column: scores})

    def __repr__(self) -> str:
        n_neurons = sum(map(len, self.scores.values()))
        return (
            f"{type(self).__name__}({n_neurons} neurons at {len(self.scores)} hook points; token "
            f"{self.token} at position {self.position}, logit {self.logit:.3f})"
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

"""Direct logit attribution of single neurons.

What a neuron of the language model writes to the residual stream stays in it up to the final norm
and the unembedding. Its *direct effect* on a token's logit is the part of the logit that is read
from there, whatever later layers also make of it (Elhage et al. 2021, "A Mathematical Framework for
Transformer Circuits"; the logit lens of nostalgebraist 2020):

    activation x (W_out[neuron] . direction of the token) / scale of the final norm

Where a norm (Gemma 2 and 3) or a gate (Mllama) comes between the MLP and the stream, what it makes
of the neuron's output counts. With the scales of norms taken as they are, the direct effects of all
components add up to the logit. Only neurons that write to that stream have one: those of the vision
encoder and the projector act through them, see `vlm_lens.analyses.attribution`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from vlm_lens.analyses.logit_effect import LogitEffect, chosen_token
from vlm_lens.cache_stream import names_of_neuron_outputs
from vlm_lens.model import HookedVLM
from vlm_lens.model_inputs import ModelInput


@dataclass(frozen=True, eq=False, repr=False)
class DirectEffect(LogitEffect):
    """The direct effect of each language-model neuron on one logit; see `direct_effect`.

    Attributes:
        activations: By hook name, the neurons' activations at the predicting position.
    """

    KIND = "direct_effect"
    COLUMN = "direct_effect"

    activations: dict[str, Float[Tensor, " d_mlp"]] = field(default_factory=dict)

    def to_dataframe(self, k: int = 10) -> pd.DataFrame:
        """The `k` best neurons, with their direct effects and activations."""
        frame = super().to_dataframe(k)
        places = zip(frame["name"], frame["index"], strict=True)
        frame["activation"] = [float(self.activations[name][index]) for name, index in places]
        return frame


@torch.no_grad()
def direct_effect(
    model: HookedVLM,
    inputs: ModelInput,
    *,
    token: int | str | None = None,
    position: int = -1,
) -> DirectEffect:
    """Measures what each neuron of the language model adds directly to a token's logit.

    The logit is taken plainly, not relative to the mean over the vocabulary: so the effects, those
    of attention and of the embedding included, add up to the number that the model returns.

    Args:
        model: The model.
        inputs: One prompt: what `model.prepare` returns, text or tokens.
        token: The token to explain, as an id or as its text; by default the predicted one.
        position: The position that predicts the token; by default the last.

    Returns:
        The effects, in logits, of every neuron at ``blocks.*.mlp.hook_post``.

    Raises:
        ValueError: The inputs hold more than one prompt, or the text is no single token.
        IndexError: There is no such position or token.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> effect = direct_effect(model, "is there a red circle ? answer :", token="no")
        >>> effect.to_dataframe(3)["direct_effect"].is_monotonic_decreasing
        True
    """
    names = [*names_of_neuron_outputs(model), "ln_final.hook_scale"]
    logits, cache = model.run_with_cache(inputs, names_filter=names, pos_slice=position)
    token = chosen_token(model, token, logits[:, position])
    direction = model.tokens_to_residual_directions(token)
    scale = cache["ln_final.hook_scale"][0, 0]
    scores, activations = {}, {}
    for layer in range(model.cfg.n_layers):
        name = f"blocks.{layer}.mlp.hook_post"
        factors, vectors = cache.neuron_outputs(layer)
        # Contracted first: the neurons' outputs [d_mlp, d_model] are never built.
        per_unit = (vectors @ direction.to(vectors.device)).float()
        activations[name] = cache[name][0, 0].float().cpu()
        scores[name] = (factors[0, 0].float() * per_unit / scale.to(per_unit.device)).cpu()
    return DirectEffect(
        scores,
        "direct effect",
        token=token,
        position=position % logits.shape[1],
        logit=float(logits[0, position, token]),
        activations=activations,
    )

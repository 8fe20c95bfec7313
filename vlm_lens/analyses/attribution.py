"""The first-order effect of every neuron on a logit, from one forward and one backward pass.

Zeroing a neuron changes the logit by about ``-gradient x activation``, summed over the positions:
the first term of the Taylor expansion in its activations (Molchanov et al. 2017 prune by it; Nanda
2023, "Attribution Patching"). Unlike the direct effect, it holds for neurons anywhere in the model,
because it follows every path from the neuron to the logit. Unlike zeroing neurons one by one, it
costs two passes for all of them, and is approximate: where the model saturates, it can be far off.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.analyses.logit_effect import MLP_NEURONS, LogitEffect, chosen_token
from vlm_lens.hooks import resolve_names
from vlm_lens.hooks.heads import flat_heads
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.model import HookedVLM
from vlm_lens.model_inputs import ModelInput
from vlm_lens.parts import text_for


class FirstOrderEffect(LogitEffect):
    """The estimated total effect of each neuron on one logit; see `first_order_effect`."""

    KIND = "first_order_effect"
    COLUMN = "first_order_effect"


@torch.enable_grad()
def first_order_effect(
    model: HookedVLM,
    inputs: ModelInput,
    *,
    sites: NamesFilter = MLP_NEURONS,
    token: int | str | None = None,
    position: int = -1,
) -> FirstOrderEffect:
    """Estimates how much of a token's logit would be lost if a neuron were zeroed everywhere.

    Args:
        model: The model; its parameters' gradients are neither needed nor touched.
        inputs: One prompt: what `model.prepare` returns, text or tokens.
        sites: Hook points whose last dimension is neurons, as a name, glob, list or predicate.
        token: The token to explain, as an id or as its text; by default the predicted one.
        position: The position that predicts the token; by default the last.

    Returns:
        For each neuron, ``gradient x activation`` summed over all positions, in logits: positive
        where zeroing it would lower the logit.

    Raises:
        ValueError: The inputs hold more than one prompt, or the text is no single token.
        IndexError: There is no such position or token.
        HookNameError: A site matches nothing.

    Warns:
        HookNeverFiredWarning: A site was not reached (the vision encoder, without an image); it
            has no scores then.

    Example:
        >>> from PIL import Image
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> inputs = model.prepare(images=Image.new("RGB", (64, 64)), text="is there a circle ?")
        >>> effect = first_order_effect(model, inputs, sites="vision_encoder.*.mlp.hook_post")
        >>> effect.top(2).count_by("component")
        {'vision_encoder': 2}
    """
    text_for(model, "the effect on a logit")
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor, hook: HookPoint) -> Tensor:
        # Where all weights before this point are frozen, the graph starts here.
        kept[str(hook.name)] = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        return kept[str(hook.name)]

    names = resolve_names(sites, model.hook_dict)  # each by its name, so that each is missed
    logits = model.run_with_hooks(inputs, fwd_hooks=[(names, keep)])
    token = chosen_token(model, token, logits[:, position])
    logit = logits[0, position, token]
    # A layer after the one that the projector reads does not reach the logit: its gradient is 0.
    gradients = torch.autograd.grad(
        logit, list(kept.values()), allow_unused=True, materialize_grads=True
    )
    scores = {
        name: flat_heads(name, gradient.float() * value.detach().float()).flatten(0, -2).sum(0)
        for (name, value), gradient in zip(kept.items(), gradients, strict=True)
    }
    return FirstOrderEffect(
        {name: values.cpu() for name, values in scores.items()},
        "first-order effect",
        token=token,
        position=position % logits.shape[1],
        logit=float(logit.detach()),
    )

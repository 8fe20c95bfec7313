"""The next-token loss: which tokens are predicted, by which positions, and which of them count."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from vlm_lens.config import HookedVLMConfig
from vlm_lens.inputs import Inputs


def next_token_loss(
    logits: Float[Tensor, "batch pos d_vocab"],
    arguments: Mapping[str, Any],
    given: Any,
    cfg: HookedVLMConfig,
    *,
    per_token: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, "batch predicted"]:
    """Cross entropy of the next token, over answers or, without them, over all text.

    Args:
        logits: What the model made of the arguments.
        arguments: Keyword arguments of the model's forward.
        given: What the user gave; `Inputs` know where answers are.
        cfg: The model's configuration.
        per_token: One loss for each predicted token, 0 where it does not count, or their mean.

    Raises:
        ValueError: An encoder-decoder model was run without an answer to predict.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> tokens = model.to_tokens("is there a red circle ?")
        >>> loss = next_token_loss(model(tokens), {"input_ids": tokens}, tokens, model.cfg)
        >>> bool(loss == model(tokens, return_type="loss"))
        True
    """
    targets, counts = next_tokens(arguments, given, cfg)
    targets, counts = targets.to(logits.device), counts.to(logits.device)
    each = F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none"
    ).view(targets.shape)
    each = each * counts
    return each if per_token else each.sum() / counts.sum()


def media_positions(
    arguments: Mapping[str, Any],
    cfg: HookedVLMConfig,
    *,
    kinds: Collection[str] = ("image", "video", "audio"),
) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Positions that are filled with an image, a video or a sound: a token marks them, or a mask.

    Args:
        arguments: Keyword arguments of the model's forward.
        cfg: The model's configuration.
        kinds: Which kinds to look for.

    Returns:
        By kind, for those that the model knows.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> tokens = model.to_tokens("<image> what color ?")
        >>> media_positions({"input_ids": tokens}, model.cfg)["image"].sum().item()
        1
    """
    tokens: Int[Tensor, "batch pos"] = arguments["input_ids"]
    ids = {
        "image": cfg.image_token_id,
        "video": cfg.video_token_id,
        "audio": cfg.audio_token_id,
    }
    found = {kind: tokens == ids[kind] for kind in kinds if ids[kind] is not None}
    marked = arguments.get("image_embeds_position_mask")
    if marked is not None and "image" in kinds:
        found["image"] = marked.bool()
    return found


def next_tokens(
    arguments: Mapping[str, Any], given: Any, cfg: HookedVLMConfig
) -> tuple[Int[Tensor, "batch predicted"], Bool[Tensor, "batch predicted"]]:
    """What each position predicts, of the decoder if there is one, and whether it is scored.

    Args:
        arguments: Keyword arguments of the model's forward.
        given: What the user gave; of `Inputs` with answers, these are scored, else all text.
        cfg: The model's configuration.

    Raises:
        ValueError: An encoder-decoder model is given no answer to predict.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> inputs = model.prepare(text="what color ?", answer="red", chat_template=False)
        >>> targets, scored = next_tokens(inputs, inputs, model.cfg)
        >>> model.to_string(targets[scored])
        'red'
    """
    if not cfg.is_encoder_decoder:
        return arguments["input_ids"][:, 1:], _counts(arguments, given, cfg)[:, 1:]
    tokens = arguments.get("decoder_input_ids")
    if tokens is None or tokens.shape[1] < 2:
        raise ValueError(
            "Expected an answer to take the loss of: an encoder-decoder model predicts its "
            "decoder's tokens. Pass what model.prepare(..., answer=...) returns, or "
            "decoder_input_ids=... with the start token and the answer."
        )
    mask = arguments.get("decoder_attention_mask")
    return tokens[:, 1:], _after_a_token(tokens, mask)[:, 1:]


def _counts(
    arguments: Mapping[str, Any], given: Any, cfg: HookedVLMConfig
) -> Bool[Tensor, "batch pos"]:
    """The tokens whose prediction is scored: the answers, or all text where there is none."""
    tokens: Int[Tensor, "batch pos"] = arguments["input_ids"]
    if isinstance(given, Inputs):
        answer = given.positions_mask("answer").to(tokens.device)
        if answer.any():
            return answer
    counted = _after_a_token(tokens, arguments.get("attention_mask"))
    for places in media_positions(arguments, cfg).values():
        counted = counted & ~places
    return counted


def _after_a_token(
    tokens: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None
) -> Bool[Tensor, "batch pos"]:
    """Tokens that follow a token: the first one after padding is predicted from nothing."""
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    return real & real.roll(1, dims=1)

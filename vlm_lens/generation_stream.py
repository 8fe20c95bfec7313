"""Generation that hands out tokens while it goes on: a decoding loop that waits for its reader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def one_token_a_step(
    model: Any,
    input_ids: Int[Tensor, "batch pos"],
    *,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    **arguments: Any,
) -> Iterator[Int[Tensor, "batch 1"]]:
    """A loop for Hugging Face's `generate`, as its `custom_generate`: the sampling one, but lazy.

    `generate` prepares everything (inputs, caches, processors of logits, criteria) and returns what
    this returns, so that it comes back with an iterator over the new tokens.

    Args:
        model: What `generate` runs its loop on.
        input_ids: The prompt.
        logits_processor: What changes the logits of the next token.
        stopping_criteria: Says which sequences have ended.
        generation_config: Whether to sample, and what fills sequences up that have ended.
        **arguments: What the model reads besides, carried on from step to step.
    """
    going_on = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
    ended = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    is_first = True
    while going_on.any():
        with torch.no_grad():  # the iterator is read after `generate`, and what it had set, is over
            if is_first:
                outputs = model._prefill(input_ids, generation_config, arguments)
            else:
                length = 1 if arguments["use_cache"] else None
                step = model.prepare_inputs_for_generation(
                    input_ids, next_sequence_length=length, **arguments
                )
                outputs = model(**step, return_dict=True)
            arguments = model._update_model_kwargs_for_generation(
                outputs, arguments, is_encoder_decoder=model.config.is_encoder_decoder
            )
            logits = outputs.logits[:, -1].float().to(input_ids.device)
            scores = logits_processor(input_ids, logits)
            token = _next(scores, sample=generation_config.do_sample)
            if ended:
                pad = generation_config._pad_token_tensor.to(token.device)
                token = torch.where(going_on, token, pad)
            input_ids = torch.cat([input_ids, token[:, None]], dim=1)
            going_on = going_on & ~stopping_criteria(input_ids, None)
        is_first = False
        yield token[:, None]


def _next(scores: Tensor, *, sample: bool) -> Int[Tensor, " batch"]:
    if not sample:
        return scores.argmax(-1)
    return torch.multinomial(scores.softmax(-1), num_samples=1)[:, 0]


def in_chunks(
    first: Int[Tensor, "batch pos"], tokens: Iterator[Int[Tensor, "batch 1"]], size: int
) -> Iterator[Int[Tensor, "batch chunk"]]:
    """Tokens by so many steps; the first chunk starts with what came before them.

    Example:
        >>> steps = iter(torch.tensor([[[1]], [[2]], [[3]]]))
        >>> [chunk.tolist() for chunk in in_chunks(torch.tensor([[0]]), steps, 2)]
        [[[0, 1, 2]], [[3]]]
    """
    held, n = [first], 0
    for token in tokens:
        held.append(token)
        n += 1
        if n == size:
            yield torch.cat(held, dim=1)
            held, n = [], 0
    if n:
        yield torch.cat(held, dim=1)


def as_text(
    tokenizer: Any, tokens: Iterator[Int[Tensor, "batch chunk"]], n_prompt: int
) -> Iterator[list[str]]:
    """What each chunk adds to the texts; together they are the texts of the whole.

    A character whose bytes are in several tokens comes with the last of them.

    Args:
        tokenizer: The model's.
        tokens: The chunks; the first one starts with the prompt.
        n_prompt: How many of the first tokens are left out.
    """
    so_far, told = None, []
    for chunk in tokens:
        so_far = chunk[:, n_prompt:] if so_far is None else torch.cat([so_far, chunk], dim=1)
        texts = _decoded(tokenizer, so_far)
        told = told or [""] * len(texts)
        whole = [text.rstrip("�") for text in texts]
        yield [new[len(old) :] for new, old in zip(whole, told, strict=True)]
        told = [max(new, old, key=len) for new, old in zip(whole, told, strict=True)]
    if so_far is not None:
        rest = [t[len(old) :] for t, old in zip(_decoded(tokenizer, so_far), told, strict=True)]
        if any(rest):
            yield rest


def _decoded(tokenizer: Any, tokens: Int[Tensor, "batch pos"]) -> list[str]:
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

"""Samples prepared for one forward: prompts alone, or with an answer behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from vlm_lens.data import Sample
from vlm_lens.inputs import Inputs
from vlm_lens.inputs.batch import token_strings
from vlm_lens.inputs.decoder_map import decoder_map
from vlm_lens.inputs.token_map import TokenMap
from vlm_lens.masking.examples import Batch, answer_positions, greedy_tokens
from vlm_lens.model import HookedVLM
from vlm_lens.parts import text_for

AnswerSource = Literal["own", "given"]


@dataclass(frozen=True)
class Answers:
    """What is behind the prompts.

    Attributes:
        source: "own": the model's greedy answer; "given": the sample's; None: nothing.
        max_new_tokens: At most so many tokens of an own answer.
        known: The tokens of own answers by the number of their sample, each one filled in when it
            is first needed, so that a second pass need not generate again; None keeps none.

    Raises:
        ValueError: The source is something else, or no token may be generated.
    """

    source: AnswerSource | None = None
    max_new_tokens: int = 64
    known: dict[int, list[int]] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.source is not None and self.source not in get_args(AnswerSource):
            raise ValueError(f"expected answers 'own', 'given' or None, got {self.source!r}")
        if self.max_new_tokens < 1:
            raise ValueError(f"expected max_new_tokens of at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True, eq=False)
class Prepared:
    """Some samples, ready for a forward.

    Attributes:
        batch: Their tensors; nothing is scored.
        numbers: The samples' places in the data set.
        maps: What each position of the sequence is that the images are in, answers included where
            that sequence holds them.
        decoder: What each position of a decoder's own sequence is; None where there is none.
    """

    batch: Batch
    numbers: list[int]
    maps: list[TokenMap]
    decoder: list[TokenMap] | None


@torch.no_grad()
def prepare(
    model: HookedVLM, samples: Sequence[Sample], numbers: Sequence[int], answers: Answers
) -> Prepared:
    """Prepares samples, and has the model answer them first where its own answers are asked for.

    Args:
        model: The model.
        samples: With or without images.
        numbers: Their places in the data set.
        answers: What is behind the prompts.

    Raises:
        ValueError, OSError: A sample cannot be prepared; e.g. an answer is missing or an image
            unreadable.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> samples = load_samples("shapes-llava", n=2)
        >>> found = prepare(model, samples, [0, 1], Answers("own"))
        >>> [token_map.role.count("answer") for token_map in found.maps]
        [2, 2]
    """
    if model.text is None:
        return _pictures(model, samples, numbers, answers)
    asked: dict[str, Any] = {
        "text": [sample.text for sample in samples],
        "images": [sample.images for sample in samples] if any(s.images for s in samples) else None,
    }
    if answers.source == "given":
        given = [sample.answer for sample in samples if sample.answer]
        if len(given) < len(samples):
            raise ValueError("answers='given' needs an answer, but the sample has none")
        inputs = model.prepare(**asked, answer=given)
        return _prepared(model, samples, numbers, inputs, dict(inputs), None)
    prompts = model.prepare(**asked)
    if answers.source is None:
        return _prepared(model, samples, numbers, prompts, dict(prompts), None)
    return _with_own(model, samples, numbers, prompts, _own(model, prompts, numbers, answers))


def _pictures(
    model: HookedVLM, samples: Sequence[Sample], numbers: Sequence[int], answers: Answers
) -> Prepared:
    """The samples' pictures for a tower alone, which passes over their texts."""
    if answers.source is not None:
        text_for(model, f"answers={answers.source!r}")
    if any(len(sample.images) != 1 for sample in samples):
        raise ValueError("a vision tower reads one image a sample, but this one has another number")
    inputs = model.prepare(images=[sample.images[0] for sample in samples])
    nothing = torch.zeros(inputs.shape, dtype=torch.long)[:, 1:]
    batch = Batch(
        samples=list(samples),
        prompts=inputs,
        arguments=dict(inputs),
        targets=nothing,
        scored=nothing.bool(),
        real=inputs.positions_mask("image"),
        answers=[],
    )
    return Prepared(batch, list(numbers), inputs.token_map, None)


def _own(
    model: HookedVLM, prompts: Inputs, numbers: Sequence[int], answers: Answers
) -> list[list[int]]:
    """The tokens of the model's greedy answers, the one that ends them included."""
    known = answers.known
    if known is not None and all(number in known for number in numbers):
        return [known[number] for number in numbers]
    tokens = greedy_tokens(model, prompts, max_new_tokens=answers.max_new_tokens)
    n_prompt = text_for(model, "answers").n_before(prompts)
    is_answer = answer_positions(model, tokens, n_prompt)
    found = [row[mask].tolist() for row, mask in zip(tokens, is_answer, strict=True)]
    if known is not None:
        known.update(zip(numbers, found, strict=True))
    return found


def _with_own(
    model: HookedVLM,
    samples: Sequence[Sample],
    numbers: Sequence[int],
    prompts: Inputs,
    own: list[list[int]],
) -> Prepared:
    """A forward over prompts and answers; shorter answers are filled up behind their end."""
    longest = max(map(len, own))
    tokenizer: Any = model.tokenizer
    fill = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    device = prompts.input_ids.device
    behind = torch.tensor([answer + [fill] * (longest - len(answer)) for answer in own])
    n_tokens = torch.tensor([len(answer) for answer in own], device=device)
    if text_for(model, "answers").has_encoder:
        tokens = torch.cat([prompts["decoder_input_ids"], behind.to(device)], dim=1)
        rest = {name: value for name, value in prompts.items() if name != "decoder_attention_mask"}
        arguments = {**rest, "decoder_input_ids": tokens}
        return _prepared(model, samples, numbers, prompts, arguments, n_tokens)
    extended = prompts.extend(torch.cat([prompts.input_ids, behind.to(device)], dim=1))
    return _prepared(model, samples, numbers, extended, dict(extended), n_tokens)


def _prepared(
    model: HookedVLM,
    samples: Sequence[Sample],
    numbers: Sequence[int],
    inputs: Inputs,
    arguments: dict[str, Any],
    n_answer: Int[Tensor, " batch"] | None,
) -> Prepared:
    """The samples with what is known of each position; `n_answer` are the lengths of own answers"""
    text = text_for(model, "positions of text")
    tokens = arguments[text.keyword("input_ids")]
    mask = arguments.get(text.keyword("attention_mask"))
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool().clone()
    if n_answer is not None:
        n_prompt = tokens.shape[1] - int(n_answer.max())
        place = torch.arange(tokens.shape[1], device=tokens.device) - n_prompt
        real &= place < n_answer[:, None]
    batch = Batch(
        samples=list(samples),
        prompts=inputs,
        arguments=arguments,
        targets=tokens[:, 1:],
        scored=torch.zeros_like(tokens[:, 1:], dtype=torch.bool),
        real=real,
        answers=[],
    )
    decoder = _decoder_maps(model, inputs, tokens, mask) if text.has_encoder else None
    return Prepared(batch, list(numbers), inputs.token_map, decoder)


def _decoder_maps(
    model: HookedVLM,
    inputs: Inputs,
    tokens: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"] | None,
) -> list[TokenMap]:
    """A decoder's sequences: padding, a token to start with, and the answer."""
    special = inputs.token_map[0].special_tokens
    padding = [0] * len(tokens) if mask is None else (mask == 0).sum(1).tolist()
    return [
        decoder_map(token_strings(model.tokenizer, row), special_tokens=special, n_padding=n)
        for row, n in zip(tokens.tolist(), padding, strict=True)
    ]

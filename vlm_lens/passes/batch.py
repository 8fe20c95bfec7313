"""Samples made ready once: prompts alone, or with the answers behind them that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vlm_lens.data import Sample
from vlm_lens.data.sample import check_are_samples
from vlm_lens.inputs import Inputs
from vlm_lens.inputs.batch import token_strings
from vlm_lens.inputs.decoder_map import decoder_map
from vlm_lens.inputs.owners import PositionOwners
from vlm_lens.inputs.token_map import TokenMap
from vlm_lens.loss import next_tokens
from vlm_lens.model import HookedVLM
from vlm_lens.parts import text_for
from vlm_lens.passes.answers import Answers

Target = Literal["own", "answer", "text"]
"""What is scored: the model's own greedy answer, the sample's answer, or the prompt's own text."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples, ready for a forward over prompts and answers, and for generation.

    Attributes:
        samples: What was asked; prepared inputs have none.
        numbers: Their places in the data set.
        prompts: The prompts, to generate from.
        arguments: Keyword arguments of the model's forward over prompts and answers.
        targets: The token that each position (the last one left out) is to predict.
        scored: The positions whose prediction counts: those of the answer, its end included where
            the model wrote the answer itself; or those of the text.
        real: The positions that hold anything: neither padding nor what is behind an answer's end.
        maps: What each position of the sequence is that the images are in, answers included where
            that sequence holds them.
        decoder: What each position of a decoder's own sequence is; None where there is none.
        answers: The model's own greedy answers, without anything masked; empty where they were not
            asked for.
    """

    samples: list[Sample]
    numbers: list[int]
    prompts: Inputs
    arguments: dict[str, Any]
    targets: Int[Tensor, "batch predicted"]
    scored: Bool[Tensor, "batch predicted"]
    real: Bool[Tensor, "batch pos"]
    maps: list[TokenMap]
    decoder: list[TokenMap] | None = None
    answers: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)

    def owners(self, *, first_token: bool = True) -> PositionOwners:
        """Says which sample each position of an activation belongs to.

        Args:
            first_token: Whether the first token of each of the language model's sequences belongs
                to its sample, or else to none.

        Example:
            >>> from vlm_lens import HookedVLM, load_samples
            >>> model = HookedVLM.from_pretrained("shapes-llava")
            >>> [batch] = make_batches(model, load_samples("shapes-llava", n=2))
            >>> batch.owners().of("vision_encoder.blocks.0.mlp.hook_post", 2, 64)[:, 0].tolist()
            [0, 1]
        """
        return PositionOwners.of_run(
            self.arguments, self.prompts.token_map, real=self.real, first_token=first_token
        )


@torch.no_grad()
def make_batch(
    model: HookedVLM,
    samples: Sequence[Sample] | Inputs,
    answers: Answers,
    *,
    numbers: Sequence[int] | None = None,
) -> Batch:
    """Prepares samples, and has the model answer them first where its own answers are asked for.

    Args:
        model: The model.
        samples: With or without images; or inputs that are prepared, of which nothing is scored.
        answers: What is behind the prompts.
        numbers: Their places in the data set; by default they are counted from 0.

    Raises:
        ValueError, OSError: A sample cannot be prepared; e.g. an answer is missing or an image
            unreadable.

    Example:
        >>> from vlm_lens import load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> batch = make_batch(model, load_samples("shapes-llava", n=2), Answers("own"))
        >>> [token_map.role.count("answer") for token_map in batch.maps]
        [2, 2]
    """
    if isinstance(samples, Inputs):
        inputs = samples.to(model.cfg.device)
        places = range(len(inputs.token_map)) if numbers is None else numbers
        return _asked(model, [], list(places), inputs)
    numbers = list(range(len(samples)) if numbers is None else numbers)
    if model.text is None:
        return _pictures(model, samples, numbers, answers)
    asked = _questions(samples)
    if answers.source == "given":
        given = [sample.answer for sample in samples if sample.answer]
        if len(given) < len(samples):
            raise ValueError("answers='given' needs an answer, but the sample has none")
        return _asked(model, samples, numbers, model.prepare(**asked, answer=given))
    prompts = model.prepare(**asked)
    if answers.source is None:
        return _asked(model, samples, numbers, prompts)
    return _answered(model, samples, numbers, prompts, answers.of(model, prompts, numbers))


def make_batches(
    model: HookedVLM,
    samples: Sequence[Sample],
    *,
    target: Target = "own",
    batch_size: int = 16,
    max_new_tokens: int = 20,
) -> list[Batch]:
    """Answers all samples once and prepares them for teacher forcing.

    Args:
        model: The model, as it is.
        samples: With or without images; with ``target="answer"`` each needs an answer.
        target: "own": the model's greedy answer, so that no annotation is needed; "answer": the
            sample's; "text": the prompt itself, as it is, without a chat template.
        batch_size: How many samples go through the model at once.
        max_new_tokens: At most so many tokens of an answer.

    Raises:
        TypeError: Something is no sample.
        ValueError: There are no samples, an answer is missing or has no token, or a number is not
            positive.

    Example:
        >>> from vlm_lens import HookedVLM, load_samples
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> [batch] = make_batches(model, load_samples("shapes-llava", n=3))
        >>> batch.scored.sum(1).tolist()  # a word and the end, each time
        [2, 2, 2]
    """
    check_samples(samples, target=target, batch_size=batch_size, max_new_tokens=max_new_tokens)
    starts = range(0, len(samples), batch_size)
    batches = []
    for i in starts:
        some = samples[i : i + batch_size]
        batch = scored_batch(model, some, target, max_new_tokens=max_new_tokens)
        batches.append(_told(model, batch, target, max_new_tokens))
    return batches


@torch.no_grad()
def _told(model: HookedVLM, batch: Batch, target: Target, max_new_tokens: int) -> Batch:
    """The same with the model's own answers as texts."""
    if target == "own":
        pairs = zip(batch.targets, batch.scored, strict=True)
        own = [tokens[mask].tolist() for tokens, mask in pairs]
    else:
        own = Answers("own", max_new_tokens).of(model, batch.prompts, batch.numbers)
    written = model.tokenizer.batch_decode(own, skip_special_tokens=True)
    return replace(batch, answers=[answer.strip() for answer in written])


def check_samples(
    samples: Sequence[Sample], *, target: Target, batch_size: int, max_new_tokens: int
) -> None:
    """Raises TypeError or ValueError unless `make_batches` can start with these arguments."""
    check_are_samples(samples)
    if not samples:
        raise ValueError("expected at least one sample, got none")
    for name, number in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if number < 1:
            raise ValueError(f"expected {name} of at least 1, got {number}")
    if target not in get_args(Target):
        raise ValueError(f"expected a target of {get_args(Target)}, got {target!r}")
    missing = [i for i, sample in enumerate(samples) if not sample.answer]
    if target == "answer" and missing:
        raise ValueError(
            f"target='answer' needs an answer with every sample, but sample {missing[0]} (in all, "
            f"{len(missing)}) has none: give them answers, or use target='own'"
        )


@torch.no_grad()
def scored_batch(
    model: HookedVLM,
    samples: Sequence[Sample],
    target: Target,
    *,
    max_new_tokens: int,
    numbers: Sequence[int] | None = None,
) -> Batch:
    """One of those that `make_batches` makes, without own answers as texts.

    Raises:
        ValueError: As there.
    """
    text_for(model, "answers that can be scored")
    numbers = list(range(len(samples)) if numbers is None else numbers)
    asked = _questions(samples)
    prompts = model.prepare(**asked, chat_template=target != "text")
    if target == "own":
        own = Answers("own", max_new_tokens).of(model, prompts, numbers)
        batch = _answered(model, samples, numbers, prompts, own)
    elif target == "text":
        batch = _asked(model, samples, numbers, prompts)
    else:
        given = [str(sample.answer) for sample in samples]
        batch = _asked(model, samples, numbers, model.prepare(**asked, answer=given))
    if target != "own":
        targets, scored = next_tokens(batch.arguments, batch.prompts, model.cfg)
        batch = replace(batch, prompts=prompts, targets=targets, scored=scored)
    _check_scored(batch)
    return batch


def _questions(samples: Sequence[Sample]) -> dict[str, Any]:
    images = [sample.images for sample in samples]
    return {"text": [sample.text for sample in samples], "images": images if any(images) else None}


def _check_scored(batch: Batch) -> None:
    """Refuses what has no loss, such as an answer that the tokenizer makes nothing of."""
    if empty := (~batch.scored.any(1)).nonzero()[:, 0].tolist():
        sample = batch.samples[empty[0]]
        raise ValueError(
            f"expected at least one token to score, but there is none in the answer "
            f"{sample.answer!r} to {sample.text!r}: give another answer, or a longer text"
        )


# One forward --------------------------------------------------------------------------------------


def _pictures(
    model: HookedVLM, samples: Sequence[Sample], numbers: list[int], answers: Answers
) -> Batch:
    """The samples' pictures for a tower alone, which passes over their texts."""
    if answers.source is not None:
        text_for(model, f"answers={answers.source!r}")
    if any(len(sample.images) != 1 for sample in samples):
        raise ValueError("a vision tower reads one image a sample, but this one has another number")
    inputs = model.prepare(images=[sample.images[0] for sample in samples])
    nothing = torch.zeros(inputs.shape, dtype=torch.long)[:, 1:]
    return Batch(
        samples=list(samples),
        numbers=numbers,
        prompts=inputs,
        arguments=dict(inputs),
        targets=nothing,
        scored=nothing.bool(),
        real=inputs.positions_mask("image"),
        maps=inputs.token_map,
    )


def _asked(
    model: HookedVLM, samples: Sequence[Sample], numbers: list[int], inputs: Inputs
) -> Batch:
    """A forward over what was prepared; nothing is scored."""
    real = _filled(model, dict(inputs))
    return _batch(model, samples, numbers, inputs, dict(inputs), inputs.token_map, real)


def _answered(
    model: HookedVLM,
    samples: Sequence[Sample],
    numbers: list[int],
    prompts: Inputs,
    own: list[list[int]],
) -> Batch:
    """A forward over prompts and answers; shorter answers are filled up behind their end."""
    text, longest = text_for(model, "answers"), max(map(len, own))
    tokenizer: Any = model.tokenizer
    fill = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    device = prompts.input_ids.device
    behind = torch.tensor([answer + [fill] * (longest - len(answer)) for answer in own])
    asked = dict(prompts)[text.keyword("input_ids")]
    tokens = torch.cat([asked, behind.to(device)], dim=1)
    if text.has_encoder:
        rest = {name: value for name, value in prompts.items() if name != "decoder_attention_mask"}
        arguments, maps = {**rest, "decoder_input_ids": tokens}, prompts.token_map
    else:
        extended = prompts.extend(tokens)
        arguments, maps = dict(extended), extended.token_map
    place = torch.arange(tokens.shape[1], device=device) - asked.shape[1]
    lengths = torch.tensor([len(answer) for answer in own], device=device)[:, None]
    real = _filled(model, arguments) & (place < lengths)
    batch = _batch(model, samples, numbers, prompts, arguments, maps, real)
    return replace(batch, scored=((place >= 0) & (place < lengths))[:, 1:])


def _batch(
    model: HookedVLM,
    samples: Sequence[Sample],
    numbers: list[int],
    prompts: Inputs,
    arguments: dict[str, Any],
    maps: list[TokenMap],
    real: Bool[Tensor, "batch pos"],
) -> Batch:
    text = text_for(model, "positions of text")
    tokens = arguments[text.keyword("input_ids")]
    return Batch(
        samples=list(samples),
        numbers=numbers,
        prompts=prompts,
        arguments=arguments,
        targets=tokens[:, 1:],
        scored=torch.zeros_like(tokens[:, 1:], dtype=torch.bool),
        real=real,
        maps=maps,
        decoder=_decoder_maps(model, prompts, arguments) if text.has_encoder else None,
    )


def _filled(model: HookedVLM, arguments: dict[str, Any]) -> Bool[Tensor, "batch pos"]:
    """The positions that are not padding, of the sequence that predicts."""
    text = text_for(model, "positions of text")
    mask = arguments.get(text.keyword("attention_mask"))
    tokens = arguments[text.keyword("input_ids")]
    return torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()


def _decoder_maps(model: HookedVLM, inputs: Inputs, arguments: dict[str, Any]) -> list[TokenMap]:
    """A decoder's sequences: padding, a token to start with, and the answer."""
    tokens, mask = arguments["decoder_input_ids"], arguments.get("decoder_attention_mask")
    special = inputs.token_map[0].special_tokens
    padding = [0] * len(tokens) if mask is None else (mask == 0).sum(1).tolist()
    return [
        decoder_map(token_strings(model.tokenizer, row), special_tokens=special, n_padding=n)
        for row, n in zip(tokens.tolist(), padding, strict=True)
    ]

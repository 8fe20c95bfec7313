"""Samples with the answers that a masked model is scored on, prepared batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vlm_lens.data import Sample
from vlm_lens.data.sample import check_are_samples
from vlm_lens.inputs import Inputs
from vlm_lens.inputs.positions import ends_of, is_answer
from vlm_lens.loss import next_tokens
from vlm_lens.model import HookedVLM
from vlm_lens.parts import Text, text_for

Target = Literal["own", "answer", "text"]
"""What is scored: the model's own greedy answer, the sample's answer, or the prompt's own text."""

_MEDIA = ("image", "video", "audio")


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples, ready for a forward over prompt and answer, and for generation.

    Attributes:
        samples: What was asked.
        prompts: The prompts alone, to generate from.
        arguments: Keyword arguments of the model's forward over prompts and answers.
        targets: The token that each position (the last one left out) is to predict.
        scored: The positions whose prediction counts: those of the answer, its end included where
            the model wrote the answer itself; or those of the text.
        real: The positions that hold anything: neither padding nor what is behind an answer's end.
        answers: The model's own greedy answers, without anything masked.
    """

    samples: list[Sample]
    prompts: Inputs
    arguments: dict[str, Any]
    targets: Int[Tensor, "batch predicted"]
    scored: Bool[Tensor, "batch predicted"]
    real: Bool[Tensor, "batch pos"]
    answers: list[str]

    def __len__(self) -> int:
        return len(self.samples)


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
    return [
        _batch(model, list(samples[i : i + batch_size]), target, max_new_tokens) for i in starts
    ]


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
def _batch(model: HookedVLM, samples: list[Sample], target: Target, max_new_tokens: int) -> Batch:
    text = text_for(model, "answers that can be scored")
    images = [sample.images for sample in samples]
    asked: dict[str, Any] = {
        "text": [sample.text for sample in samples],
        "images": images if any(images) else None,
        "chat_template": target != "text",
    }
    prompts = model.prepare(**asked)
    tokens = greedy_tokens(model, prompts, max_new_tokens=max_new_tokens)
    n_prompt = text.n_before(prompts)
    answers = model.tokenizer.batch_decode(tokens[:, n_prompt:], skip_special_tokens=True)
    if target == "own":
        arguments = with_answers(model, prompts, tokens)
        is_answer = answer_positions(model, tokens, n_prompt)
        targets, scored = tokens[:, 1:], is_answer[:, 1:]
        real = _filled(arguments, text).clone()
        real[:, n_prompt:] = is_answer[:, n_prompt:]
    else:
        given = [str(sample.answer) for sample in samples] if target == "answer" else None
        inputs = model.prepare(**asked, answer=given)
        arguments = dict(inputs)
        targets, scored = next_tokens(arguments, inputs, model.cfg)
        real = _filled(arguments, text)
    _check_scored(samples, scored)
    return Batch(
        samples=samples,
        prompts=prompts,
        arguments=arguments,
        targets=targets,
        scored=scored,
        real=real,
        answers=[answer.strip() for answer in answers],
    )


def _filled(arguments: dict[str, Any], text: Text) -> Bool[Tensor, "batch pos"]:
    """The positions that are not padding, of the sequence that predicts."""
    mask = arguments.get(text.keyword("attention_mask"))
    tokens = arguments[text.keyword("input_ids")]
    return torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()


def _check_scored(samples: list[Sample], scored: Bool[Tensor, "batch predicted"]) -> None:
    """Refuses what has no loss, such as an answer that the tokenizer makes nothing of."""
    if empty := (~scored.any(1)).nonzero()[:, 0].tolist():
        sample = samples[empty[0]]
        raise ValueError(
            f"expected at least one token to score, but there is none in the answer "
            f"{sample.answer!r} to {sample.text!r}: give another answer, or a longer text"
        )


def greedy_tokens(
    model: HookedVLM, prompts: Inputs, *, max_new_tokens: int
) -> Int[Tensor, "batch pos"]:
    """What `generate` returns where it takes the likeliest token at every step.

    A model's own generation settings (beams, a penalty of repetitions) are set aside: a masked
    model is compared with itself. Tokens that stand for images are never taken.
    """
    return model.generate(
        prompts,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        suppress_tokens=media_tokens(model) or None,
        return_type="tokens",
    )


def media_tokens(model: Any) -> list[int]:
    """Tokens that no answer may hold, since there is no image, video or sound behind them."""
    hf_model = model.hf_model if isinstance(model, HookedVLM) else model.original_model
    names = [f"{kind}_token_{key}" for kind in _MEDIA for key in ("id", "index")]
    found = {getattr(hf_model.config, name, None) for name in names}
    return sorted(token for token in found if token is not None)


def with_answers(
    model: HookedVLM, prompts: Inputs, tokens: Int[Tensor, "batch pos"]
) -> dict[str, Any]:
    """Keyword arguments of a forward over prompts and what `generate` returned for them."""
    if not text_for(model, "answers").has_encoder:
        return dict(prompts.extend(tokens))
    rest = {name: value for name, value in prompts.items() if name != "decoder_attention_mask"}
    return {**rest, "decoder_input_ids": tokens}


def answer_positions(
    model: HookedVLM, tokens: Int[Tensor, "batch pos"], n_prompt: int
) -> Bool[Tensor, "batch pos"]:
    """The positions of generated answers, the token that ends them included."""
    return is_answer(tokens, n_prompt, ends_of(model.hf_model))

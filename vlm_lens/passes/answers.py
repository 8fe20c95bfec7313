"""What a model answers, and a forward over prompts with these answers behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from jaxtyping import Bool, Int
from torch import Tensor

from vlm_lens.inputs import Inputs
from vlm_lens.inputs.positions import ends_of, is_answer
from vlm_lens.model import HookedVLM
from vlm_lens.parts import text_for

AnswerSource = Literal["own", "given"]

_MEDIA = ("image", "video", "audio")


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

    def of(self, model: HookedVLM, prompts: Inputs, numbers: Sequence[int]) -> list[list[int]]:
        """The tokens of the model's own answers, the one that ends each included.

        Args:
            model: The model.
            prompts: What it is asked.
            numbers: The samples' numbers.
        """
        if self.known is not None and all(number in self.known for number in numbers):
            return [self.known[number] for number in numbers]
        tokens = greedy_tokens(model, prompts, max_new_tokens=self.max_new_tokens)
        n_prompt = text_for(model, "answers").n_before(prompts)
        is_own = answer_positions(model, tokens, n_prompt)
        own = [row[mask].tolist() for row, mask in zip(tokens, is_own, strict=True)]
        if self.known is not None:
            self.known.update(zip(numbers, own, strict=True))
        return own


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

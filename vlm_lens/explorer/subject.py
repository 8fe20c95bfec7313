"""What is explored: one prompt, and the answer behind it in one sequence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlm_lens.inputs import Inputs
from vlm_lens.inputs.batch import token_strings
from vlm_lens.inputs.decoder_map import decoder_map
from vlm_lens.inputs.token_map import TokenMap
from vlm_lens.model import HookedVLM
from vlm_lens.parts import Text, text_for
from vlm_lens.passes.answers import greedy_tokens, media_tokens, with_answers


@dataclass(frozen=True, eq=False)
class Subject:
    """One prompt with an answer, ready for a forward over both.

    Attributes:
        model: The model.
        prompt: The prompt alone, to generate from.
        tokens: What `generate` returns for the prompt, or would return if it gave this answer.
        max_new_tokens: At most so many tokens when an answer is generated.
        is_own: Whether the answer is the model's own.
    """

    model: HookedVLM
    prompt: Inputs
    tokens: Int[Tensor, "1 pos"]
    max_new_tokens: int
    is_own: bool

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a forward over prompt and answer."""
        return {**with_answers(self.model, self.prompt, self.tokens), "use_cache": False}

    @cached_property
    def token_map(self) -> TokenMap:
        """The sequence that images are in; it holds the answer too unless a decoder has it."""
        if self._text.has_encoder:
            return self.prompt.token_map[0]
        return self.prompt.token_map[0].extend(self._strings(self.answer_tokens))

    @cached_property
    def decoder_map(self) -> TokenMap | None:
        """The sequence of a decoder beside an encoder: its start token and the answer."""
        if not self._text.has_encoder:
            return None
        special = self.prompt.token_map[0].special_tokens
        return decoder_map(self._strings(self.tokens[0]), special_tokens=special)

    @property
    def _text(self) -> Text:
        return text_for(self.model, "an answer")

    @property
    def n_before(self) -> int:
        """How many of the tokens are in front of the answer."""
        return self._text.n_before(self.prompt)

    @property
    def answer_tokens(self) -> Int[Tensor, " answer"]:
        """The answer's tokens, the one that ends it included where the model wrote it."""
        return self.tokens[0, self.n_before :]

    @property
    def answer(self) -> str:
        """The answer as text, without special tokens."""
        return self.text_of(self.tokens)

    def text_of(self, tokens: Int[Tensor, "1 pos"]) -> str:
        """The answer in tokens that `generate` returned for this prompt."""
        new = tokens[0, self.n_before :]
        return str(self.model.tokenizer.decode(new, skip_special_tokens=True)).strip()

    def answer_logits(
        self, logits: Float[Tensor, "1 pos d_vocab"]
    ) -> Float[Tensor, "answer d_vocab"]:
        """Of a forward's logits, those that predict the answer's tokens."""
        return logits[0, self.n_before - 1 : -1]

    def generate(self) -> Int[Tensor, "1 pos"]:
        """What the model answers now, with whatever hooks it has."""
        return greedy_tokens(self.model, self.prompt, max_new_tokens=self.max_new_tokens)

    def _strings(self, ids: Int[Tensor, " n"]) -> list[str]:
        return token_strings(self.model.tokenizer, ids.tolist())


@torch.no_grad()
def make_subject(
    model: HookedVLM, inputs: Inputs, *, answer: str | None = None, max_new_tokens: int = 20
) -> Subject:
    """Prepares a prompt and its answer.

    Args:
        model: The model.
        inputs: One prompt without an answer, as `model.prepare` returns it.
        answer: A text to put behind it; by default what the model generates.
        max_new_tokens: At most so many tokens of a generated answer.

    Raises:
        TypeError: The inputs are something else.
        ValueError: They are several prompts, or hold an answer already; or the answer is empty, or
            holds a token that stands for an image.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> subject = make_subject(model, model.prepare(text="what color is the sky ?"),
        ...                        answer="blue")
        >>> subject.token_map.role[-2:], subject.token_map.tokens[-1]
        (['prompt', 'answer'], 'blue')
    """
    if not isinstance(inputs, Inputs):
        raise TypeError(
            f"expected what model.prepare(...) returns, got {type(inputs).__name__}: an explorer "
            "needs to know what each position is"
        )
    if inputs.shape[0] != 1:
        raise ValueError(
            f"expected one prompt, got a batch of {inputs.shape[0]}: explore them one by one"
        )
    decoder = inputs.tensors.get("decoder_input_ids")
    if inputs.token_map[0].positions("answer") or (decoder is not None and decoder.shape[1] > 1):
        raise ValueError(
            "expected a prompt without an answer: leave it out of prepare(...) and pass "
            "explore(..., answer=...)"
        )
    if max_new_tokens < 1:
        raise ValueError(f"expected max_new_tokens of at least 1, got {max_new_tokens}")
    if answer is None:
        tokens = greedy_tokens(model, inputs, max_new_tokens=max_new_tokens)
    else:
        tokens = _with_answer(model, inputs, answer)
    return Subject(model, inputs, tokens, max_new_tokens, answer is None)


def _with_answer(model: HookedVLM, inputs: Inputs, answer: str) -> Int[Tensor, "1 pos"]:
    tokenizer: Any = model.tokenizer
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(
            f"expected an answer with at least one token, but there is none in {answer!r}"
        )
    if media := set(ids) & set(media_tokens(model)):
        token = tokenizer.convert_ids_to_tokens(min(media))
        raise ValueError(
            f"expected an answer in words, but {answer!r} holds {token!r}, which stands for an "
            "image or a sound: leave it out"
        )
    start = inputs[text_for(model, "an answer").keyword("input_ids")]
    return torch.cat([start, torch.tensor([ids], device=start.device)], dim=1)

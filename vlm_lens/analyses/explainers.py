"""Explainers that ask a model in words: a chat endpoint, or a VLM on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lens.analyses.chat import Chat
from vlm_lens.analyses.exemplars import Exemplars
from vlm_lens.analyses.explaining.asking import EXPLAIN, explain_prompt, read_explanation
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.prompt import Cost, Prompt
from vlm_lens.inputs.media import tokenizer_of
from vlm_lens.model import HookedVLM


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What a model is shown of a neuron."""

    shown: int = 5
    instruction: str = EXPLAIN
    context: int = 40

    def prompt(self, exemplars: Exemplars) -> Prompt:
        """What is asked about a neuron."""
        return explain_prompt(
            exemplars.top[: self.shown], instruction=self.instruction, context=self.context
        )


@dataclass(frozen=True)
class ChatExplainer:
    """Asks a chat endpoint; made by `by_chat`."""

    chat: Chat
    shows: _Shown

    def __call__(self, exemplars: Exemplars) -> Explanation:
        return self.chat.ask(self.shows.prompt(exemplars), read_explanation)

    def cost(self, neurons: Sequence[Exemplars]) -> Cost:
        """What explaining these neurons costs, without what is in the cache."""
        return self.chat.cost([self.shows.prompt(exemplars) for exemplars in neurons])

    @property
    def parameters(self) -> dict[str, Any]:
        return {"explainer": "chat", **self.chat.parameters, **vars(self.shows)}


@dataclass(frozen=True)
class ModelExplainer:
    """Asks a VLM on this machine; made by `by_model`."""

    model: HookedVLM
    shows: _Shown
    max_new_tokens: int

    def __call__(self, exemplars: Exemplars) -> Explanation:
        prompt = self.shows.prompt(exemplars)
        inputs = self.model.prepare(text=self._text(prompt), images=prompt.images or None)
        reply = self.model.generate(inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        return read_explanation(reply)

    def _text(self, prompt: Prompt) -> str | list[dict[str, Any]]:
        """A chat message, images in their places; without a template a text, images in front."""
        processor: Any = self.model.processor
        if not (getattr(processor, "chat_template", None) or tokenizer_of(processor).chat_template):
            return prompt.text
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in prompt.parts
        ]
        content = [{"type": "text", "text": prompt.instruction}, *parts]
        return [{"role": "user", "content": content}]

    @property
    def parameters(self) -> dict[str, Any]:
        name = str(self.model.hf_model.name_or_path)
        return {"explainer": "model", "model": name, **vars(self.shows)}


def by_chat(
    chat: Chat, *, shown: int = 5, instruction: str = EXPLAIN, context: int = 40
) -> ChatExplainer:
    """An explainer that asks a chat endpoint, as the paper asks GPT-4o.

    Images of the samples, and the texts, are sent to that endpoint.

    Args:
        chat: The endpoint.
        shown: How many of the top samples it is shown.
        instruction: What it is told to do. The paper's prompts are not published; this one is ours.
        context: At most so many tokens of a text, around the most active one.

    Raises:
        ValueError: A number is not positive.

    Example:
        >>> by_chat(Chat("http://localhost:8000/v1", "qwen2.5-vl")).parameters["shown"]
        5
    """
    _check(shown=shown, context=context)
    return ChatExplainer(chat, _Shown(shown=shown, instruction=instruction, context=context))


def by_model(
    model: HookedVLM,
    *,
    shown: int = 5,
    instruction: str = EXPLAIN,
    context: int = 40,
    max_new_tokens: int = 60,
) -> ModelExplainer:
    """An explainer that asks a VLM on this machine, which must follow instructions.

    Args:
        model: The model; several images in one prompt must be nothing new to it, or `shown` be 1.
        shown: How many of the top samples it is shown.
        instruction: What it is told to do.
        context: At most so many tokens of a text, around the most active one.
        max_new_tokens: At most so many tokens of an explanation.

    Raises:
        ValueError: A number is not positive, or the model has no processor.

    Example:
        >>> by_model(HookedVLM.from_pretrained("shapes-llava"), shown=1).max_new_tokens
        60
    """
    _check(shown=shown, context=context, max_new_tokens=max_new_tokens)
    if model.processor is None:
        raise ValueError("by_model needs a processor: HookedVLM(hf_model, processor=processor)")
    shows = _Shown(shown=shown, instruction=instruction, context=context)
    return ModelExplainer(model, shows, max_new_tokens)


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"expected {name} of at least 1, got {number}")

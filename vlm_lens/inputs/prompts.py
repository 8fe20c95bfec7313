"""Turn what a user writes into a processor's prompt, one placeholder per image or sound."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_lens.counted import counted
from vlm_lens.inputs.media import Medium, tokenizer_of
from vlm_lens.inputs.messages import Message, parts_of
from vlm_lens.inputs.words import check_text

Prompt = str | Sequence[Message]


def render_prompt(
    processor: Any,
    prompt: Prompt,
    *,
    medium: Medium,
    n_media: int,
    sample: int,
    chat_template: bool = True,
) -> str:
    """Writes out a prompt with one placeholder per image or sound, ready for the processor.

    Args:
        processor: Its chat template is used, or its tokenizer's.
        prompt: A text or chat messages.

            - A text that holds the placeholder, or of a prompt without images another special
              token, is a finished prompt and stays as it is.
            - Any other text becomes a user's message behind its images, and goes through the chat
              template. Without a template, it follows the placeholders on a line of its own.
            - Chat messages go through the chat template. If none of them holds an image, the
              images go in front of the first message of the user.
        medium: What the model takes besides text. A processor that places an image by itself gets
            the prompt without placeholders.
        n_media: How many images or sounds belong to the prompt.
        sample: The prompt's place in its batch, for error messages.
        chat_template: Whether a text goes through the chat template, if there is one.

    Raises:
        TypeError: The prompt is neither a text nor chat messages.
        ValueError: The prompt is empty, it has another number of placeholders than of images, it
            holds special tokens but no placeholders for its images, or it consists of messages and
            there is no chat template.

    Warns:
        UserWarning: A special token inside of a text keeps it from the chat template.
    """
    if not medium.in_prompt and n_media > 1:
        raise ValueError(
            f"sample {sample}: {type(processor).__name__} takes one image per prompt, got "
            f"{n_media}: pass the images one by one"
        )
    writer = _Writer(processor, medium, n_media if medium.in_prompt else 0, chat_template)
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"sample {sample}: the prompt is empty ({prompt!r}): write some text")
        check_text(prompt, what=f"sample {sample}: the prompt")
        text = writer.text(prompt, sample)
    else:
        text = writer.messages(prompt, sample)
    n = text.count(medium.token)
    if n != writer.n_media:
        placeholders = counted(n, f"{medium.token!r} placeholder")
        raise ValueError(
            f"sample {sample}: the prompt has {placeholders}, but "
            f"{counted(n_media, medium.name)} came with it: {_remedy(medium)}. The whole prompt is "
            f"{text!r}"
        )
    return text


def _remedy(medium: Medium) -> str:
    if medium.in_prompt:
        return f"pass one {medium.name} per placeholder, in the prompt's order"
    return "leave the placeholder out, the processor puts the image in front by itself"


@dataclass(frozen=True)
class _Writer:
    """Writes prompts for one processor."""

    processor: Any
    medium: Medium
    n_media: int
    has_template: bool

    def text(self, text: str, sample: int) -> str:
        if self.medium.token in text:
            return text
        special = [
            token for token in tokenizer_of(self.processor).all_special_tokens if token in text
        ]
        if special:
            self._check_finished(text, special, sample)
            return text
        if self._template is None:
            return self.medium.token * self.n_media + "\n" * bool(self.n_media) + text
        return self._apply(self._with_media([{"role": "user", "content": text}]))

    def _check_finished(self, text: str, special: list[str], sample: int) -> None:
        """A text with special tokens is taken for a finished prompt; say so where it looks new."""
        name, token = self.medium.name, self.medium.token
        if self.n_media:
            raise ValueError(
                f"sample {sample}: the text holds the special token {special[0]!r}, so that it is "
                f"taken for a finished prompt, but it has no {token!r} placeholder for its "
                f"{counted(self.n_media, name)}: take {special[0]!r} out of the text, or write the "
                "placeholders too"
            )
        if self._template is not None and not text.lstrip().startswith(tuple(special)):
            warnings.warn(
                f"sample {sample}: the text holds the special token {special[0]!r}, so that it is "
                "taken for a finished prompt and the chat template is not applied: take it out of "
                "the text, or pass chat_template=False",
                stacklevel=2,
            )

    def messages(self, messages: Sequence[Message], sample: int) -> str:
        if self._template is None:
            raise ValueError(
                f"sample {sample}: chat messages need a chat template, and neither the processor "
                "nor its tokenizer has one, or chat_template=False was asked for: write the prompt "
                "as a str"
            )
        if not any(self._holds_medium(message) for message in messages):
            messages = self._with_media(messages)
        return self._apply(messages)

    @property
    def _template(self) -> str | dict[str, str] | None:
        if not self.has_template:
            return None
        own = getattr(self.processor, "chat_template", None)
        return own or tokenizer_of(self.processor).chat_template

    def _is_medium(self, part: Message) -> bool:
        return part.get("type") == self.medium.name

    def _holds_medium(self, message: Message) -> bool:
        in_parts = any(self._is_medium(part) for part in parts_of(message))
        return in_parts or self.medium.token in _text_of(message)

    def _with_media(self, messages: Sequence[Message]) -> list[Message]:
        """Puts images in front of the first message of the user."""
        first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
        media = [{"type": self.medium.name}] * self.n_media
        return [
            {**message, "content": media + parts_of(message)} if i == first else message
            for i, message in enumerate(messages)
        ]

    def _apply(self, messages: Sequence[Message]) -> str:
        # A template that never mentions images cannot place them: such templates expect each
        # content as one text, so the placeholders are written into it.
        places_media = self.medium.name in str(self._template)
        contents = [
            parts_of(message) if places_media else self._flat(message) for message in messages
        ]
        chat = [{**m, "content": content} for m, content in zip(messages, contents, strict=True)]
        owner = self.processor
        if not getattr(owner, "chat_template", None):
            owner = tokenizer_of(owner)
        generate = messages[-1]["role"] != "assistant"
        return owner.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)

    def _flat(self, message: Message) -> str:
        n_media = sum(self._is_medium(part) for part in parts_of(message))
        return self.medium.token * n_media + "\n" * bool(n_media) + _text_of(message)


def check_messages(messages: Any, sample: int) -> None:
    """Refuse what are no chat messages.

    Raises:
        TypeError: They are none.
        ValueError: A message lacks a key, or they hold no text.
    """
    if not _is_list_of_dicts(messages):
        raise TypeError(
            f"sample {sample}: expected the prompt as a str or a list of chat messages (dicts), "
            f"got {type(messages).__name__}"
        )
    for message in messages:
        if not {"role", "content"} <= message.keys():
            raise ValueError(
                f"sample {sample}: a chat message needs 'role' and 'content', got the keys "
                f"{sorted(message)}"
            )
        if not isinstance(message["content"], str) and not _is_list_of_dicts(message["content"]):
            raise TypeError(
                f"sample {sample}: expected a chat message's content as a str or a list of parts "
                f"(dicts), got {message['content']!r}"
            )
        check_text(_text_of(message), what=f"sample {sample}: a message")
    if not any(_text_of(message).strip() for message in messages):
        raise ValueError(f"sample {sample}: the prompt is empty: its messages hold no text")


def _is_list_of_dicts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)


def _text_of(message: Message) -> str:
    return "".join(part.get("text", "") for part in parts_of(message))

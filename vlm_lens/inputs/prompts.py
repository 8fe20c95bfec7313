"""Turn what a user writes into the prompt text of a processor, one placeholder per image."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import LlavaProcessor

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]


def render_prompt(processor: LlavaProcessor, prompt: Prompt, *, n_images: int, sample: int) -> str:
    """Writes out a prompt with one placeholder per image, ready for the tokenizer.

    Args:
        processor: Its image token and chat template are used; the template may be its tokenizer's.
        prompt: A text or chat messages.

            - A text that holds the image token or another special token is a finished prompt and
              stays as it is.
            - Any other text becomes a user's message behind its images, and goes through the chat
              template. Without a template, it follows the placeholders on a line of its own.
            - Chat messages go through the chat template. If none of them holds an image, the
              images go in front of the first message of the user.
        n_images: How many images belong to the prompt.
        sample: The prompt's place in its batch, for error messages.

    Raises:
        TypeError: The prompt is neither a text nor chat messages.
        ValueError: The prompt is empty, it has another number of placeholders than of images, or
            it consists of messages and there is no chat template.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ValueError(f"sample {sample}: the prompt is empty ({prompt!r}): write some text")
        text = _render_text(processor, prompt, n_images)
    else:
        _check_messages(prompt, sample)
        text = _render_messages(processor, prompt, n_images, sample)
    placeholders = text.count(processor.image_token)
    if placeholders != n_images:
        raise ValueError(
            f"sample {sample}: the prompt has {placeholders} {processor.image_token!r} "
            f"placeholder(s), but {n_images} image(s) came with it: pass one image per "
            f"placeholder, in the prompt's order. The whole prompt is {text!r}"
        )
    return text


def _render_text(processor: LlavaProcessor, text: str, n_images: int) -> str:
    special = [processor.image_token, *processor.tokenizer.all_special_tokens]
    if any(token in text for token in special):
        return text
    if _template(processor) is None:
        return processor.image_token * n_images + "\n" * bool(n_images) + text
    return _apply_template(processor, _with_images([{"role": "user", "content": text}], n_images))


def _render_messages(
    processor: LlavaProcessor, messages: Sequence[Message], n_images: int, sample: int
) -> str:
    if _template(processor) is None:
        raise ValueError(
            f"sample {sample}: chat messages need a chat template, and neither the processor nor "
            "its tokenizer has one: write the prompt as a str"
        )
    if not any(_holds_image(message, processor.image_token) for message in messages):
        messages = _with_images(messages, n_images)
    return _apply_template(processor, messages)


def _check_messages(messages: Any, sample: int) -> None:
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
    if not any(_text_of(message).strip() for message in messages):
        raise ValueError(f"sample {sample}: the prompt is empty: its messages hold no text")


def _is_list_of_dicts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)


def _template(processor: LlavaProcessor) -> str | dict[str, str] | None:
    return processor.chat_template or processor.tokenizer.chat_template


def _parts(message: Message) -> list[Message]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _text_of(message: Message) -> str:
    return "".join(part.get("text", "") for part in _parts(message))


def _holds_image(message: Message, image_token: str) -> bool:
    is_image = any(part.get("type") in ("image", "image_url") for part in _parts(message))
    return is_image or image_token in _text_of(message)


def _with_images(messages: Sequence[Message], n_images: int) -> list[Message]:
    """Puts images in front of the first message of the user."""
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), 0)
    images = [{"type": "image"}] * n_images
    return [
        {**message, "content": images + _parts(message)} if i == first else message
        for i, message in enumerate(messages)
    ]


def _apply_template(processor: LlavaProcessor, messages: Sequence[Message]) -> str:
    # A template that never mentions images cannot place them: such templates expect each content
    # as one text, so the placeholders are written into it.
    places_images = "image" in str(_template(processor))
    contents = [
        _parts(message) if places_images else _flat(message, processor.image_token)
        for message in messages
    ]
    chat = [{**m, "content": content} for m, content in zip(messages, contents, strict=True)]
    owner = processor if processor.chat_template else processor.tokenizer
    generate = messages[-1]["role"] != "assistant"
    return owner.apply_chat_template(chat, tokenize=False, add_generation_prompt=generate)


def _flat(message: Message, image_token: str) -> str:
    images = sum(part.get("type") in ("image", "image_url") for part in _parts(message))
    return image_token * images + "\n" * bool(images) + _text_of(message)

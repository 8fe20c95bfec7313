"""Images and sounds inside chat messages, found as Hugging Face's processors find them."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from vlm_lens.inputs.media import Medium

Message = Mapping[str, Any]

# Where a part of a message keeps its image or sound, besides under the medium's own name.
_KEYS = ("url", "path", "base64")


def parts_of(message: Message) -> list[Message]:
    """The parts of a message's content; OpenAI's ``image_url`` parts as Hugging Face's images.

    Example:
        >>> parts_of({"role": "user", "content": "what color ?"})
        [{'type': 'text', 'text': 'what color ?'}]
        >>> part = {"type": "image_url", "image_url": {"url": "a.png"}}
        >>> parts_of({"role": "user", "content": [part]})
        [{'type': 'image', 'url': 'a.png'}]
    """
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_unified(part) for part in content]


def _unified(part: Message) -> Message:
    kind = str(part.get("type"))
    if not kind.endswith("_url"):
        return part
    name, given = kind.removesuffix("_url"), part.get(kind)
    url = given.get("url") if isinstance(given, Mapping) else given
    return {"type": name} if url is None else {"type": name, "url": url}


def media_in(messages: Sequence[Message], medium: Medium, *, sample: int) -> list[Any]:
    """The images or sounds that messages hold, in their order; none where they only say where.

    Args:
        messages: A conversation.
        medium: What the model takes besides text.
        sample: The prompt's place in its batch, for error messages.

    Raises:
        ValueError: Some parts hold theirs and others do not, or one is of a kind that the model
            does not take.
    """
    parts = [part for message in messages for part in parts_of(message)]
    foreign = {"image", "audio", "video"} - {medium.name}
    for part in parts:
        if part.get("type") in foreign:
            frames_instead = part["type"] == "video" and medium.name == "image"
            raise ValueError(
                f"sample {sample}: a message holds a part of type {part['type']!r}, but this model "
                f"{medium.is_taken}: leave it out"
                + (", or pass frames of the video as images" if frames_instead else "")
            )
    places = [part for part in parts if part.get("type") == medium.name]
    sources = [source for part in places for source in _sources(part, medium)]
    if sources and len(sources) != len(places):
        raise ValueError(
            f"sample {sample}: {len(sources)} of {len(places)} {medium.name} parts of the messages "
            f"hold their {medium.name}: put each into its part, or pass all as "
            f"{'images' if medium.name == 'image' else 'audio'}="
        )
    return sources


def _sources(part: Message, medium: Medium) -> list[Any]:
    found = [key for key in (medium.name, *_KEYS) if part.get(key) is not None]
    return [_decoded(part[key], in_base64=key == "base64") for key in found]


def _decoded(source: Any, *, in_base64: bool) -> Any:
    """An image that is written into the message itself; anything else as it is."""
    if not isinstance(source, str) or not (in_base64 or source.startswith("data:image/")):
        return source
    try:
        return Image.open(BytesIO(base64.b64decode(source.rpartition(",")[2], validate=True)))
    except (binascii.Error, OSError) as error:
        raise ValueError(
            f"expected an image in base64, but {source[:40]!r} cannot be decoded ({error})"
        ) from error

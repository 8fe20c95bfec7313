"""The settings that an image processor works with, as Hugging Face finds them for each call."""

import warnings
from typing import Any


def settings(owner: Any) -> dict[str, Any]:
    """Returns all settings that an image processor works with.

    Its attributes count as they are now, and the processor around it overrides some of them; then
    the image processor brings them into one form: Qwen-VL's ``max_pixels`` becomes part of
    ``size``.

    Args:
        owner: A Hugging Face processor, or an image processor alone.

    Example:
        >>> from transformers import Qwen2VLImageProcessorPil
        >>> image_processor = Qwen2VLImageProcessorPil()
        >>> image_processor.max_pixels = 1024
        >>> settings(image_processor)["size"].longest_edge
        1024
    """
    image_processor = getattr(owner, "image_processor", owner)
    names = image_processor.valid_kwargs.__annotations__
    own = {name: getattr(image_processor, name, None) for name in names}
    with warnings.catch_warnings():  # what is deprecated, Hugging Face's own call says
        warnings.simplefilter("ignore", FutureWarning)
        return image_processor._standardize_kwargs(**{**own, **_overrides(owner)})


def _overrides(owner: Any) -> dict[str, Any]:
    """What a processor hands to its image processor with every call."""
    if hasattr(owner, "_merge_kwargs"):
        tokenizer = owner.tokenizer.init_kwargs
        return owner._merge_kwargs(tokenizer_init_kwargs=tokenizer)["images_kwargs"]
    return getattr(owner, "images_kwargs", {})


def edges(size: Any) -> dict[str, int]:
    """Returns an image processor's size as a plain dict, e.g. of "height" and "width"."""
    return {name: int(value) for name, value in dict(size).items() if value is not None}

"""Which architecture record belongs to which Hugging Face class."""

from __future__ import annotations

from vlm_lens.architectures.base import Architecture, ArchitectureError
from vlm_lens.architectures.llava import LLAVA

_REGISTRY: dict[str, Architecture] = {record.model_class: record for record in (LLAVA,)}


def supported_architectures() -> list[str]:
    """Names of the Hugging Face classes that `HookedVLM` can wrap.

    Example:
        >>> supported_architectures()
        ['LlavaForConditionalGeneration']
    """
    return sorted(_REGISTRY)


def architecture_of(model_class: str) -> Architecture:
    """The record of a Hugging Face class.

    Raises:
        ArchitectureError: There is none; the message lists the classes that have one.
    """
    if model_class not in _REGISTRY:
        raise ArchitectureError(
            f"Expected a model of one of the supported classes ({', '.join(_REGISTRY)}), "
            f"but got {model_class}. To add one, write its `Architecture` record (module paths, "
            "see vlm_lens/architectures/llava.py) and list it in "
            "vlm_lens/architectures/registry.py."
        )
    return _REGISTRY[model_class]

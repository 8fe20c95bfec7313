"""Which architecture record belongs to which Hugging Face model."""

from __future__ import annotations

from typing import Any

from vlm_lens.architectures import blip, qwen_vl, text_models, towers
from vlm_lens.architectures.base import Architecture
from vlm_lens.architectures.gemma3 import GEMMA3
from vlm_lens.architectures.idefics3 import IDEFICS3, SMOLVLM
from vlm_lens.architectures.internvl import INTERNVL, INTERNVL_CLIP
from vlm_lens.architectures.kosmos2 import KOSMOS2
from vlm_lens.architectures.llava import LLAVA
from vlm_lens.architectures.llava_next import LLAVA_NEXT
from vlm_lens.architectures.llava_onevision import LLAVA_ONEVISION
from vlm_lens.architectures.mistral3 import MISTRAL3
from vlm_lens.architectures.mllama import MLLAMA
from vlm_lens.architectures.paligemma import PALIGEMMA
from vlm_lens.architectures.qwen2_audio import QWEN2_AUDIO
from vlm_lens.hooks import ArchitectureError

_RECORDS: list[Architecture] = [
    LLAVA,
    LLAVA_NEXT,
    LLAVA_ONEVISION,
    blip.BLIP2_OPT,
    blip.BLIP2_T5,
    blip.INSTRUCTBLIP_LLAMA,
    blip.INSTRUCTBLIP_T5,
    qwen_vl.QWEN2_VL,
    qwen_vl.QWEN2_5_VL,
    qwen_vl.QWEN3_VL,
    PALIGEMMA,
    GEMMA3,
    IDEFICS3,
    SMOLVLM,
    INTERNVL,
    INTERNVL_CLIP,
    MLLAMA,
    MISTRAL3,
    KOSMOS2,
    QWEN2_AUDIO,
    *text_models.RECORDS,
    *towers.RECORDS,
]


def records() -> list[Architecture]:
    """All records, those that were registered last at the end.

    Example:
        >>> records()[0].model_class
        'LlavaForConditionalGeneration'
    """
    return list(_RECORDS)


def supported_architectures() -> list[str]:
    """Names of the Hugging Face classes that `HookedVLM` can wrap.

    Example:
        >>> "Qwen2_5_VLForConditionalGeneration" in supported_architectures()
        True
    """
    return sorted({record.model_class for record in _RECORDS})


def register_architecture(record: Architecture) -> None:
    """Makes `HookedVLM` know one more family; a later record comes before an earlier one.

    Args:
        record: Where the family keeps its tensors; `docs/add_an_architecture.md` explains it.

    Example:
        >>> from vlm_lens.architectures import register_architecture
        >>> from vlm_lens.architectures.llava import LLAVA  # or a record of your own
        >>> register_architecture(LLAVA)
        >>> records()[-1] is LLAVA
        True
    """
    _RECORDS.append(record)


def architecture_of(model_class: str, config: Any) -> Architecture:
    """The record of a Hugging Face model.

    Args:
        model_class: Name of its class.
        config: Its configuration; the types of text model and tower decide between records of a
            class.

    Raises:
        ArchitectureError: There is none; the message lists the classes that have one.
    """
    of_class = [record for record in reversed(_RECORDS) if record.model_class == model_class]
    if not of_class:
        raise ArchitectureError(
            f"Expected a model of one of the supported classes "
            f"({', '.join(supported_architectures())}), but got {model_class}. To add one, write "
            "its `Architecture` record (docs/add_an_architecture.md) and call "
            "vlm_lens.architectures.register_architecture(record)."
        )
    text_type = config.get_text_config().model_type
    vision_type = getattr(getattr(config, "vision_config", None), "model_type", None)
    of_text = [r for r in of_class if not r.text_types or text_type in r.text_types]
    for record in of_text:
        if not record.vision_types or vision_type in record.vision_types:
            return record
    known = sorted(text_type for record in of_class for text_type in record.text_types)
    raise ArchitectureError(
        f"Expected {model_class} with a text model of one of the types {known}, got {text_type!r}."
    )

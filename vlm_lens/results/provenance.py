"""What a result depends on besides its parameters: the model, the versions, the date."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from vlm_lens.loading import BUNDLED, bundled_path
from vlm_lens.versions import versions


def hf_model_of(model: Any) -> Any:
    """The Hugging Face model in a `HookedVLM` or a TransformerBridge, else the model itself.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> hf_model_of(model) is hf_model_of(model.hf_model) is model.hf_model
        True
    """
    names = ("hf_model", "original_model")
    return next((getattr(model, name) for name in names if hasattr(model, name)), model)


def provenance(model: Any) -> dict[str, Any]:
    """What a result depends on besides its parameters, ready for `write_result`.

    Args:
        model: A HookedVLM, a TransformerBridge or a Hugging Face model.

    Returns:
        The model's name, revision (None if it is not from the hub), class, dtype and device, the
        versions of Python and the libraries, and the date (UTC).

    Example:
        >>> from vlm_lens import HookedVLM
        >>> found = provenance(HookedVLM.from_pretrained("shapes-llava"))
        >>> found["model"], found["class"], found["dtype"]
        ('shapes-llava', 'LlavaForConditionalGeneration', 'float32')
    """
    hf_model = hf_model_of(model)
    parameter = next(hf_model.parameters())
    return {
        "model": name_of(hf_model),
        "revision": getattr(hf_model.config, "_commit_hash", None),
        "class": type(hf_model).__name__,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def name_of(hf_model: Any) -> str:
    """What a Hugging Face model was loaded as; the bundled one by its name, not by its place.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> name_of(HookedVLM.from_pretrained("shapes-llava").hf_model)
        'shapes-llava'
    """
    name = str(hf_model.name_or_path)
    return BUNDLED if name == str(bundled_path()) else name

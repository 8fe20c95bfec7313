"""What a result depends on besides its parameters: the model, the versions, the date."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import torch
from torch import nn

from vlm_lens.hooks.adapters import adapted
from vlm_lens.loading import BUNDLED, bundled_path
from vlm_lens.versions import versions

_READ = 16
"""So many entries of each parameter tell models apart."""


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


def digest_of_weights(module: nn.Module) -> str:
    """A checksum of every parameter's name, shape, dtype and some of its entries.

    It tells a model from its fine-tuned versions without reading all of it, and from itself with
    other adapters active. Parameters that a device map keeps out of memory count by name, shape and
    dtype only.
    """
    digest = hashlib.sha256()
    for name, layer in module.named_modules():
        if adapted(layer):
            state = (name, layer.disable_adapters, layer.active_adapters)
            digest.update(repr((*state, getattr(layer, "scaling", None))).encode())
    for name, parameter in module.named_parameters():
        digest.update(repr((name, tuple(parameter.shape), str(parameter.dtype))).encode())
        if not parameter.is_meta:
            flat = parameter.detach().flatten()
            places = torch.linspace(0, len(flat) - 1, _READ, dtype=torch.float64).long()
            some = flat[places.to(flat.device)].cpu()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

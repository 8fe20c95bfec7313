"""Look inside vision-language models: every activation has a name, down to single neurons."""

from __future__ import annotations

TYPE_CHECKING = False  # as of typing, which takes longer than Ctrl-C may wait for an answer
if TYPE_CHECKING:
    from typing import Any

    from vlm_lens.cache import ActivationCache
    from vlm_lens.data import Sample, load_imagefolder, load_samples
    from vlm_lens.explorer import explore
    from vlm_lens.model import HookedVLM
    from vlm_lens.neurons import Neuron, NeuronSet

__all__ = [
    "ActivationCache",
    "HookedVLM",
    "Neuron",
    "NeuronSet",
    "Sample",
    "explore",
    "load_imagefolder",
    "load_samples",
]

_HOMES = {
    "ActivationCache": "vlm_lens.cache",
    "HookedVLM": "vlm_lens.model",
    "Neuron": "vlm_lens.neurons",
    "NeuronSet": "vlm_lens.neurons",
    "Sample": "vlm_lens.data",
    "explore": "vlm_lens.explorer",
    "load_imagefolder": "vlm_lens.data",
    "load_samples": "vlm_lens.data",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and transformers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'vlm_lens' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__

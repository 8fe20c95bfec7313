"""Look inside vision-language models: every activation has a name, down to single neurons."""

from vlm_lens.cache import ActivationCache
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import Neuron, NeuronSet

__all__ = ["ActivationCache", "HookedVLM", "Neuron", "NeuronSet"]

"""Sets of neurons: chosen by index, mask or score, combined, saved, and turned into hooks."""

from vlm_lens.neurons.neuron import Neuron
from vlm_lens.neurons.neuron_set import NeuronSet

__all__ = ["Neuron", "NeuronSet"]

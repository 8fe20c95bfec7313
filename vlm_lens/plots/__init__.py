"""Figures: one per file; each takes plain arrays and returns something that notebooks show."""

from vlm_lens.plots.neuron_over_image import neuron_over_image
from vlm_lens.plots.neuron_over_tokens import TokenFigure, neuron_over_tokens

__all__ = ["TokenFigure", "neuron_over_image", "neuron_over_tokens"]

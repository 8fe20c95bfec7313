"""Figures: one per file; each takes plain arrays or a result and returns what notebooks show."""

from vlm_lens.plots.collapse_curve import collapse_curve
from vlm_lens.plots.neuron_over_image import neuron_over_image
from vlm_lens.plots.neuron_over_tokens import TokenFigure, neuron_over_tokens
from vlm_lens.plots.text_gallery import TextGallery, text_gallery
from vlm_lens.plots.where_they_sit import where_they_sit

__all__ = [
    "TextGallery",
    "TokenFigure",
    "collapse_curve",
    "neuron_over_image",
    "neuron_over_tokens",
    "text_gallery",
    "where_they_sit",
]

"""Figures: one per file; each takes plain arrays or a result and returns what notebooks show."""

from vlm_lens.plots.collapse_curve import collapse_curve
from vlm_lens.plots.exemplar_sheet import ExemplarSheet, exemplar_sheet
from vlm_lens.plots.importance_by_layer import importance_by_layer
from vlm_lens.plots.masking_curves import masking_curves
from vlm_lens.plots.neuron_over_image import neuron_over_image
from vlm_lens.plots.neuron_over_tokens import TokenFigure, neuron_over_tokens
from vlm_lens.plots.set_overlap import set_overlap
from vlm_lens.plots.specificity_matrix import specificity_matrix
from vlm_lens.plots.text_gallery import TextGallery, text_gallery
from vlm_lens.plots.type_proportions import type_proportions
from vlm_lens.plots.where_they_sit import where_they_sit

__all__ = [
    "ExemplarSheet",
    "TextGallery",
    "TokenFigure",
    "collapse_curve",
    "exemplar_sheet",
    "importance_by_layer",
    "masking_curves",
    "neuron_over_image",
    "neuron_over_tokens",
    "set_overlap",
    "specificity_matrix",
    "text_gallery",
    "type_proportions",
    "where_they_sit",
]

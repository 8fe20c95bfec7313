"""Figures: one per file; each takes plain arrays or a result and returns what notebooks show.

`save` writes any of them into a file. Charts are plotly's; what is text is HTML. Larger inputs than
a figure can show are sampled, and the figure says so.
"""

from vlm_lens.plots.activation_histogram import activation_histogram
from vlm_lens.plots.attention_by_layer import attention_by_layer
from vlm_lens.plots.attention_heads import attention_heads
from vlm_lens.plots.attention_over_image import attention_over_image
from vlm_lens.plots.attention_over_tokens import attention_over_tokens
from vlm_lens.plots.collapse_curve import collapse_curve
from vlm_lens.plots.exemplar_sheet import ExemplarSheet, exemplar_sheet
from vlm_lens.plots.html_figure import HtmlFigure, ScriptFigure
from vlm_lens.plots.importance_by_layer import importance_by_layer
from vlm_lens.plots.layer_neuron_map import layer_neuron_map
from vlm_lens.plots.logit_lens_by_layer import logit_lens_by_layer
from vlm_lens.plots.logit_lens_over_image import logit_lens_over_image
from vlm_lens.plots.masking_curves import masking_curves
from vlm_lens.plots.modality_convergence import modality_convergence
from vlm_lens.plots.neuron_over_image import neuron_over_image
from vlm_lens.plots.neuron_over_tokens import TokenFigure, neuron_over_tokens
from vlm_lens.plots.neurons_over_tokens import neurons_over_tokens
from vlm_lens.plots.save import save
from vlm_lens.plots.set_overlap import set_overlap
from vlm_lens.plots.specificity_matrix import specificity_matrix
from vlm_lens.plots.statistics_by_layer import statistics_by_layer
from vlm_lens.plots.text_gallery import TextGallery, text_gallery
from vlm_lens.plots.type_proportions import type_proportions
from vlm_lens.plots.where_they_sit import where_they_sit

__all__ = [
    "ExemplarSheet",
    "HtmlFigure",
    "ScriptFigure",
    "TextGallery",
    "TokenFigure",
    "activation_histogram",
    "attention_by_layer",
    "attention_heads",
    "attention_over_image",
    "attention_over_tokens",
    "collapse_curve",
    "exemplar_sheet",
    "importance_by_layer",
    "layer_neuron_map",
    "logit_lens_by_layer",
    "logit_lens_over_image",
    "masking_curves",
    "modality_convergence",
    "neuron_over_image",
    "neuron_over_tokens",
    "neurons_over_tokens",
    "save",
    "set_overlap",
    "specificity_matrix",
    "statistics_by_layer",
    "text_gallery",
    "type_proportions",
    "where_they_sit",
]

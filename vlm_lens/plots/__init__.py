"""Figures: one per file; each takes arrays, tables or neurons and returns what notebooks show.

`save` writes any of them into a file. Charts are plotly's; what is text is HTML. Larger inputs than
a figure can show are sampled, and the figure says so.
"""

from vlm_lens.plots.activation_histogram import activation_histogram
from vlm_lens.plots.attention_heads import attention_heads
from vlm_lens.plots.attention_over_image import attention_over_image
from vlm_lens.plots.attention_over_tokens import attention_over_tokens
from vlm_lens.plots.cells import Cell, cells
from vlm_lens.plots.collapse_curve import Curve, collapse_curve
from vlm_lens.plots.html_figure import HtmlFigure, ScriptFigure
from vlm_lens.plots.layer_neuron_map import layer_neuron_map
from vlm_lens.plots.lines import Panel, lines, lines_of
from vlm_lens.plots.logit_lens_by_layer import logit_lens_by_layer
from vlm_lens.plots.logit_lens_over_image import logit_lens_over_image
from vlm_lens.plots.neuron_over_image import neuron_over_image
from vlm_lens.plots.neuron_over_tokens import TokenFigure, neuron_over_tokens
from vlm_lens.plots.neurons_over_tokens import neurons_over_tokens
from vlm_lens.plots.save import save
from vlm_lens.plots.statistics_by_layer import statistics_by_layer
from vlm_lens.plots.text_gallery import TextGallery, text_gallery
from vlm_lens.plots.type_proportions import type_proportions
from vlm_lens.plots.where_they_sit import where_they_sit

__all__ = [
    "Cell",
    "Curve",
    "HtmlFigure",
    "Panel",
    "ScriptFigure",
    "TextGallery",
    "TokenFigure",
    "activation_histogram",
    "attention_heads",
    "attention_over_image",
    "attention_over_tokens",
    "cells",
    "collapse_curve",
    "layer_neuron_map",
    "lines",
    "lines_of",
    "logit_lens_by_layer",
    "logit_lens_over_image",
    "neuron_over_image",
    "neuron_over_tokens",
    "neurons_over_tokens",
    "save",
    "statistics_by_layer",
    "text_gallery",
    "type_proportions",
    "where_they_sit",
]

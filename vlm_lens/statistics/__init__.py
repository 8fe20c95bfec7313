"""Statistics of every neuron over a data set, in one pass and in memory that does not grow."""

from vlm_lens.inputs.token_types import TokenType
from vlm_lens.statistics.collect import collect
from vlm_lens.statistics.histograms import Histogram, collect_histograms
from vlm_lens.statistics.moments import Moments
from vlm_lens.statistics.neuron_statistics import NeuronStatistics
from vlm_lens.statistics.top_samples import TopSamples

__all__ = [
    "Histogram",
    "Moments",
    "NeuronStatistics",
    "TokenType",
    "TopSamples",
    "collect",
    "collect_histograms",
]

"""Analyses: one method per file."""

from vlm_lens.analyses import can, culture, explain, miner, neuron_types, pcicn, simulate
from vlm_lens.analyses.attribution import FirstOrderEffect, first_order_effect
from vlm_lens.analyses.critical import CriticalNeurons
from vlm_lens.analyses.direct_effect import DirectEffect, direct_effect
from vlm_lens.analyses.logit_lens import LogitLens, logit_lens
from vlm_lens.results.scores import Scores

__all__ = [
    "CriticalNeurons",
    "DirectEffect",
    "FirstOrderEffect",
    "LogitLens",
    "Scores",
    "can",
    "culture",
    "direct_effect",
    "explain",
    "first_order_effect",
    "logit_lens",
    "miner",
    "neuron_types",
    "pcicn",
    "simulate",
]

"""How a model does without some of its neurons: measured fast, for many nested sets at once."""

from vlm_lens.masking.means import mean_activations
from vlm_lens.masking.metrics import (
    ACCURACY,
    AGREEMENT,
    CLEAN_PERPLEXITY,
    COLLAPSE,
    DEGRADED,
    OWN_PERPLEXITY,
    PERPLEXITY,
    PERPLEXITY_RATIO,
    Criterion,
    Metric,
    clip_score,
    similarity,
    word_overlap,
)
from vlm_lens.masking.runs import MaskedRun, MaskedRuns
from vlm_lens.passes.batch import Batch, Target, make_batches

__all__ = [
    "ACCURACY",
    "AGREEMENT",
    "CLEAN_PERPLEXITY",
    "COLLAPSE",
    "DEGRADED",
    "OWN_PERPLEXITY",
    "PERPLEXITY",
    "PERPLEXITY_RATIO",
    "Batch",
    "Criterion",
    "MaskedRun",
    "MaskedRuns",
    "Metric",
    "Target",
    "clip_score",
    "make_batches",
    "mean_activations",
    "similarity",
    "word_overlap",
]

"""Passes: samples through the model once, reduced by hooks to states that merge."""

from vlm_lens.passes.answers import Answers
from vlm_lens.passes.batch import Batch, Target, make_batch, make_batches
from vlm_lens.passes.one_pass import SamplesLeftOutWarning, one_pass
from vlm_lens.passes.passed import Passed, merge
from vlm_lens.passes.reducers import (
    Beside,
    Reading,
    Reducer,
    Rows,
    State,
    Total,
    mean_of,
    sum_of,
)
from vlm_lens.passes.run import Run
from vlm_lens.passes.watch import Watch

__all__ = [
    "Answers",
    "Batch",
    "Beside",
    "Passed",
    "Reading",
    "Reducer",
    "Rows",
    "Run",
    "SamplesLeftOutWarning",
    "State",
    "Target",
    "Total",
    "Watch",
    "make_batch",
    "make_batches",
    "mean_of",
    "merge",
    "one_pass",
    "sum_of",
]

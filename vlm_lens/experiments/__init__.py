"""Experiments: tasks measured under edits, beside controls."""

from vlm_lens.experiments.matrix import Matrix, matrix
from vlm_lens.experiments.measure import (
    CLEAN,
    Answered,
    Grades,
    exact_match,
    measure,
)
from vlm_lens.experiments.selected import Selected

__all__ = [
    "CLEAN",
    "Answered",
    "Grades",
    "Matrix",
    "Selected",
    "exact_match",
    "matrix",
    "measure",
]

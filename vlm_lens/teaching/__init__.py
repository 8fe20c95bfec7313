"""Exercises whose answers check themselves, and pairs of pictures that differ in one thing.

`notebooks/07_exercises.ipynb` asks them.
"""

from vlm_lens.teaching.exercises import Exercises
from vlm_lens.teaching.pairs import Pairs, make_pairs
from vlm_lens.teaching.verdict import Verdict

__all__ = ["Exercises", "Pairs", "Verdict", "make_pairs"]

"""Analyses: one method per file."""

from vlm_lens.analyses.attribution import FirstOrderEffect, first_order_effect
from vlm_lens.analyses.direct_effect import DirectEffect, direct_effect

__all__ = ["DirectEffect", "FirstOrderEffect", "direct_effect", "first_order_effect"]

"""Lazy taps on Hugging Face modules: the mechanism under every hook point."""

from vlm_lens.hooks.attention import AttentionProbe
from vlm_lens.hooks.names import HookNameError, resolve_names
from vlm_lens.hooks.norm import NormProbe
from vlm_lens.hooks.tap import Tap, input_of, output_of

__all__ = [
    "AttentionProbe",
    "HookNameError",
    "NormProbe",
    "Tap",
    "input_of",
    "output_of",
    "resolve_names",
]

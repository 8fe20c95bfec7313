"""Lazy taps on Hugging Face modules: the mechanism under every hook point."""

from vlm_lens.hooks.attention import AttentionProbe
from vlm_lens.hooks.names import HookNameError, resolve_names
from vlm_lens.hooks.norm import NormProbe
from vlm_lens.hooks.patch_rows import PatchRows, tap_at
from vlm_lens.hooks.place import ArchitectureError, Place
from vlm_lens.hooks.tap import Tap, input_of, output_of, shared_input_of
from vlm_lens.hooks.view import View, heads_view, slice_view

__all__ = [
    "ArchitectureError",
    "AttentionProbe",
    "HookNameError",
    "NormProbe",
    "PatchRows",
    "Place",
    "Tap",
    "View",
    "heads_view",
    "input_of",
    "output_of",
    "resolve_names",
    "shared_input_of",
    "slice_view",
    "tap_at",
]

"""Lazy taps on Hugging Face modules: the mechanism under every hook point."""

from vlm_lens.hooks.attention import AttentionProbe
from vlm_lens.hooks.inline_attention import InlineAttentionProbe
from vlm_lens.hooks.names import HookNameError, resolve_names
from vlm_lens.hooks.norm import NormProbe
from vlm_lens.hooks.patch_rows import PatchRows, tap_at
from vlm_lens.hooks.place import ArchitectureError, Place
from vlm_lens.hooks.positions import PositionsProbe
from vlm_lens.hooks.tap import Tap, input_of, output_of, shared_input_of
from vlm_lens.hooks.view import OutputPart, View, by_head_part, heads_view, slice_part

__all__ = [
    "ArchitectureError",
    "AttentionProbe",
    "HookNameError",
    "InlineAttentionProbe",
    "NormProbe",
    "OutputPart",
    "PatchRows",
    "Place",
    "PositionsProbe",
    "Tap",
    "View",
    "by_head_part",
    "heads_view",
    "input_of",
    "output_of",
    "resolve_names",
    "shared_input_of",
    "slice_part",
    "tap_at",
]

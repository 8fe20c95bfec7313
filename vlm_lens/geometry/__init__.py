"""Where everything lies that an image becomes: pure functions on numbers."""

from vlm_lens.geometry.anyres import llava_next_layout, llava_onevision_layout
from vlm_lens.geometry.audio import AudioLayout, audio_layout
from vlm_lens.geometry.dynamic import pixtral_layout, qwen_vl_layout, siglip2_layout
from vlm_lens.geometry.fixed import class_token_layout, fixed_layout, patch_layout, pooled_layout
from vlm_lens.geometry.grid import Merge, PatchGrid, merged_heatmap
from vlm_lens.geometry.layout import ImageLayout, LayoutFunction, MediaLayout
from vlm_lens.geometry.queries import kosmos2_layout, query_layout
from vlm_lens.geometry.splits import idefics3_layout, internvl_layout, mllama_layout
from vlm_lens.geometry.transform import Box, Number, PixelTransform, Size, pixel_transform

__all__ = [
    "AudioLayout",
    "Box",
    "ImageLayout",
    "LayoutFunction",
    "MediaLayout",
    "Merge",
    "Number",
    "PatchGrid",
    "PixelTransform",
    "Size",
    "audio_layout",
    "class_token_layout",
    "fixed_layout",
    "idefics3_layout",
    "internvl_layout",
    "kosmos2_layout",
    "llava_next_layout",
    "llava_onevision_layout",
    "merged_heatmap",
    "mllama_layout",
    "patch_layout",
    "pixel_transform",
    "pixtral_layout",
    "pooled_layout",
    "query_layout",
    "qwen_vl_layout",
    "siglip2_layout",
]

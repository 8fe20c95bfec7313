"""Images and texts as a model's inputs, and the way back from positions to pixels."""

from vlm_lens.geometry import PatchGrid, PixelTransform, pixel_transform
from vlm_lens.inputs.batch import Inputs
from vlm_lens.inputs.images import load_image
from vlm_lens.inputs.prepare import prepare
from vlm_lens.inputs.token_map import TokenMap

__all__ = [
    "Inputs",
    "PatchGrid",
    "PixelTransform",
    "TokenMap",
    "load_image",
    "pixel_transform",
    "prepare",
]

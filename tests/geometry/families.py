"""Every family with images: its layout, and tiny processors and models of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import strategies as st

from tests import families
from vlm_lens.geometry import (
    ImageLayout,
    Size,
    fixed_layout,
    idefics3_layout,
    internvl_layout,
    kosmos2_layout,
    llava_next_layout,
    llava_onevision_layout,
    mllama_layout,
    pixtral_layout,
    pooled_layout,
    query_layout,
    qwen_vl_layout,
)

LAYOUTS: dict[str, Callable[..., ImageLayout]] = {
    "llava_next": llava_next_layout,
    "llava_onevision": llava_onevision_layout,
    "onevision-shrunk": llava_onevision_layout,
    "onevision-leftover": llava_onevision_layout,
    "instructblip-llama": query_layout,
    "blip2-opt": query_layout,
    "qwen2_vl": qwen_vl_layout,
    "qwen2_5_vl": qwen_vl_layout,
    "qwen3_vl": qwen_vl_layout,
    "paligemma": fixed_layout,
    "gemma3": pooled_layout,
    "gemma3-crops": pooled_layout,
    "idefics3": idefics3_layout,
    "idefics3-odd": idefics3_layout,
    "smolvlm": idefics3_layout,
    "internvl": internvl_layout,
    "mllama": mllama_layout,
    "mistral3": pixtral_layout,
    "kosmos2": kosmos2_layout,
}
# Those of whose tokens some show patches.
WITH_GRIDS = [
    name for name, layout in LAYOUTS.items() if layout not in (query_layout, kosmos2_layout)
]
WITH_GRIDS.remove("mllama")
# From a few pixels to long and narrow; Pixtral shrinks an image that is still narrower to nothing.
SIZES = st.tuples(st.integers(4, 200), st.integers(4, 200)) | st.tuples(
    st.integers(1, 60), st.integers(1, 60)
)


@cache
def built(name: str) -> tuple[Any, Any]:
    """A tiny model and its processor; shared, so leave them as they are."""
    if name == "onevision-shrunk":
        hf, processor = families.build("llava_onevision", vision_aspect_ratio="anyres_max_2")
        processor.vision_aspect_ratio = "anyres_max_2"
        return hf, processor
    if name == "onevision-leftover":
        return _with_leftover()
    hf, processor = families.build(_base(name))
    if name == "idefics3-odd":  # the longer side is rounded up to tiles, and the other one with it
        processor.image_processor.size = {"longest_edge": 50}
    if name == "gemma3-crops":
        processor.images_kwargs = {
            **processor.images_kwargs,
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 16,
        }
    return hf, processor


def layout_of(name: str, size: Size, *, n_images: int = 1) -> ImageLayout:
    hf, processor = built(name)
    return LAYOUTS[name](processor, hf.config, size, n_images=n_images)


def _with_leftover() -> tuple[Any, Any]:
    """Tiles of 37 pixels, of which 4 patches of 8 leave 5 over, as 27 of 14 leave 6 of 384."""
    pinpoints = [[37, 74], [74, 37], [74, 74]]
    hf, processor = families.build("llava_onevision", image_grid_pinpoints=pinpoints)
    config = hf.config
    config.vision_config.image_size = 37
    processor.image_processor.size = {"height": 37, "width": 37}
    processor.image_processor.image_grid_pinpoints = pinpoints
    return hf, processor


def placeholder(name: str) -> str:
    """What stands for one image in a prompt of this family."""
    return families._FAMILIES[_base(name)].placeholder


def _base(name: str) -> str:
    if name.startswith("onevision"):
        return "llava_onevision"
    return name.removesuffix("-crops").removesuffix("-odd")

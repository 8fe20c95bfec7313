"""Settings of an image processor that are changed after it was made count as in Hugging Face."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.families import _FAMILIES, build
from tests.families.base import picture
from vlm_lens import HookedVLM

# By family: what becomes of its image when the setting is changed. Sizes that a family's model
# does not take, whoever prepares the image, are left out.
CHANGES: dict[str, list[tuple[str, Any]]] = {
    "llava_next": [("do_resize", False), ("do_pad", False)],
    "llava_onevision": [("do_resize", False)],
    "instructblip-llama": [("size", {"height": 16, "width": 48}), ("size", 24)],
    "blip2-opt": [("size", {"shortest_edge": 16}), ("do_resize", False)],
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        [
            ("max_pixels", 32 * 32),
            ("min_pixels", 128 * 128),
            ("size", {"shortest_edge": 256, "longest_edge": 2048}),
        ],
    ),
    "gemma3": [("do_pan_and_scan", True)],
    "idefics3": [
        ("do_image_splitting", False),
        ("size", {"longest_edge": 48}),
        ("size", {"height": 48, "width": 90}),
        ("do_resize", False),
    ],
    "smolvlm": [("do_image_splitting", False), ("size", {"longest_edge": 96})],
    "internvl": [("max_patches", 2), ("min_patches", 3), ("crop_to_patches", False)],
    "mllama": [("max_image_tiles", 2)],
    "mistral3": [("size", {"longest_edge": 32})],
    "kosmos2": [("size", {"shortest_edge": 48}), ("do_center_crop", False)],
}
CASES = [(name, *change) for name, changes in CHANGES.items() for change in changes]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("owner", ["image processor", "processor"])
@pytest.mark.parametrize(("name", "setting", "value"), CASES)
def test_a_changed_setting_counts(name: str, setting: str, value: Any, owner: str):
    hf, processor = build(name)
    if owner == "processor":
        processor.images_kwargs = {**getattr(processor, "images_kwargs", {}), setting: value}
    else:
        setattr(processor.image_processor, setting, value)
    family, image = _FAMILIES[name], picture(3, size=(96, 64))
    text = f"{family.placeholder} what color ?"
    images = [[image]] if family.nested else [image]
    expected = processor(text=[text], images=images, return_tensors="pt")
    inputs = HookedVLM(hf, processor=processor).prepare(
        images=image, text=text, chat_template=False
    )
    for key, tensor in inputs.items():
        assert torch.equal(tensor, expected[key].to(tensor.dtype)), key
    layout = inputs.token_map[0].layouts[0]
    assert layout.original_size == (96, 64)


def test_what_hugging_face_warns_of_it_warns_of_itself():
    """Reading the settings is silent: a layout is no call of the processor."""
    hf, processor = build("qwen2_vl")
    processor.image_processor.max_pixels = 1024
    model = HookedVLM(hf, processor=processor)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.architecture.layout(processor, hf.config, (96, 64))

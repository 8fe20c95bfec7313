"""Families that resize every image to one size: LLaVA, PaliGemma, Gemma 3."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from vlm_lens.geometry.grid import PatchGrid
from vlm_lens.geometry.layout import ImageLayout, Token, blank, raster, square
from vlm_lens.geometry.settings import edges, settings
from vlm_lens.geometry.transform import Box, PixelTransform, Size, pixel_transform

_PAN_AND_SCAN = (
    "pan_and_scan_min_crop_size",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
)


def fixed_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """One view, and one token for each of its patches: LLaVA, PaliGemma.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlavaConfig
        >>> processor = SimpleNamespace(image_processor=CLIPImageProcessorPil())
        >>> config = LlavaConfig(vision_config=CLIPVisionConfig(patch_size=56))
        >>> layout = fixed_layout(processor, config, (400, 200))
        >>> len(layout.tokens), layout.tokens[5]
        (16, (0, 1, 1))
        >>> layout.grids[0].box(1, 1)
        (150.0, 50.0, 200.0, 100.0)
    """
    transform = pixel_transform(size, processor)
    grid = PatchGrid(transform, square(config.vision_config.patch_size))
    tokens: list[Token] = ["class"] * n_class_tokens(processor)
    n_class = getattr(processor, "num_additional_image_tokens", 0)
    return ImageLayout.of([grid], [grid], n_class=n_class, tokens=tokens + raster(0, grid))


def n_class_tokens(processor: Any) -> int:
    """Returns how many of an image's positions come before those of its patches."""
    dropped = getattr(processor, "vision_feature_select_strategy", None) == "default"
    return getattr(processor, "num_additional_image_tokens", 0) - dropped


def pooled_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """Views whose patches are averaged in square groups, one token for each group: Gemma 3.

    With pan-and-scan, crops of a long image follow the view of the whole of it.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import Gemma3Config, Gemma3ImageProcessorPil, SiglipVisionConfig
        >>> processor = SimpleNamespace(image_processor=Gemma3ImageProcessorPil())
        >>> vision = SiglipVisionConfig(image_size=224, patch_size=14)
        >>> config = Gemma3Config(vision_config=vision, mm_tokens_per_image=16)
        >>> layout = pooled_layout(processor, config, (640, 480))
        >>> layout.n_positions, len(layout.tokens)
        (256, 16)
        >>> layout.grids[0].box(0, 1)
        (160.0, 0.0, 320.0, 120.0)
    """
    patch = square(config.vision_config.patch_size)
    per_side = config.vision_config.image_size // patch
    pooled = patch * (per_side // int(config.mm_tokens_per_image**0.5))
    whole, given = (0, 0, *size), settings(processor)
    transforms = [
        _crop_transform(size, crop, edges(given["size"]))
        for crop in [whole, *_pan_and_scan(given, size)]
    ]
    return ImageLayout.of(
        [PatchGrid(transform, patch) for transform in transforms],
        [PatchGrid(transform, pooled) for transform in transforms],
    )


def _pan_and_scan(given: dict[str, Any], size: Size) -> Iterator[Box]:
    if not given["do_pan_and_scan"]:
        return
    limits = {name: given[name] for name in _PAN_AND_SCAN}
    crops = Gemma3ImageProcessorPil().pan_and_scan(blank(size), **limits)
    if not crops:
        return
    _, height, width = crops[0].shape  # the last crop may be smaller
    for y, x in product(range(0, size[1], height), range(0, size[0], width)):
        yield x, y, min(x + width, size[0]), min(y + height, size[1])


def _crop_transform(size: Size, crop: Box, target: dict[str, int]) -> PixelTransform:
    x0, y0, x1, y1 = crop
    if not {"width", "height"} <= target.keys():
        raise ValueError(
            f"the image processor resizes to {target}, which is not supported: expected 'height' "
            "and 'width'"
        )
    processed = (target["width"], target["height"])
    if (x1 - x0, y1 - y0) == size:
        return PixelTransform(size, processed, (0, 0), processed)
    scales = (processed[0] / (x1 - x0), processed[1] / (y1 - y0))
    resized = (size[0] * scales[0], size[1] * scales[1])
    return PixelTransform(size, resized, (x0 * scales[0], y0 * scales[1]), processed)


def patch_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """A tower alone, whose positions are its patches: SigLIP.

    Args:
        processor: The tower's image processor.
        config: The tower's config.
        size: (width, height) of the image.
        n_images: How many images the sample has: a tower reads them one by one.

    Example:
        >>> from transformers import SiglipImageProcessorPil, SiglipVisionConfig
        >>> layout = patch_layout(SiglipImageProcessorPil(), SiglipVisionConfig(), (400, 200))
        >>> layout.n_positions, layout.grids[0].box(0, 1)
        (196, (28.571428571428573, 0.0, 57.142857142857146, 14.285714285714286))
    """
    return _of_tower(processor, config, size, n_class=0)


def class_token_layout(
    processor: Any, config: Any, size: Size, *, n_images: int = 1
) -> ImageLayout:
    """A tower alone, with a class token in front of its patches, and registers: CLIP, ViT, DINO.

    Args:
        processor: The tower's image processor.
        config: The tower's config.
        size: (width, height) of the image.
        n_images: How many images the sample has: a tower reads them one by one.

    Example:
        >>> from transformers import CLIPImageProcessorPil, CLIPVisionConfig
        >>> layout = class_token_layout(CLIPImageProcessorPil(), CLIPVisionConfig(), (400, 200))
        >>> layout.n_positions, layout.tokens[:2]
        (50, ('class', (0, 0, 0)))
    """
    n_class = 1 + getattr(config, "num_register_tokens", 0)
    return _of_tower(processor, config, size, n_class=n_class)


def _of_tower(processor: Any, config: Any, size: Size, *, n_class: int) -> ImageLayout:
    grid = PatchGrid(pixel_transform(size, processor), square(config.patch_size))
    tokens: list[Token] = ["class"] * n_class
    return ImageLayout.of([grid], [grid], n_class=n_class, tokens=tokens + raster(0, grid))

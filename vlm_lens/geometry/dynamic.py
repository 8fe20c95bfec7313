"""Families whose grid follows the image's own size: Qwen-VL, and Pixtral's encoder in Mistral 3."""

from typing import Any

from transformers.image_utils import ChannelDimension
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    get_image_size_for_max_num_patches,
)

from vlm_lens.geometry.grid import PatchGrid
from vlm_lens.geometry.layout import ImageLayout, blank
from vlm_lens.geometry.settings import edges, settings
from vlm_lens.geometry.transform import PixelTransform, Size


def qwen_vl_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """One view of the image's own shape, each square group of patches one token: Qwen-VL.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil
        >>> processor = SimpleNamespace(image_processor=Qwen2VLImageProcessorPil())
        >>> layout = qwen_vl_layout(processor, Qwen2VLConfig(), (280, 168))
        >>> layout.grids[0].rows, layout.grids[0].cols, layout.n_positions
        (6, 10, 240)
    """
    given = settings(processor)
    patch, merge = given["patch_size"], given["merge_size"]
    width, height = size
    if given["do_resize"]:
        limits = edges(given["size"])
        height, width = smart_resize(
            height, width, patch * merge, limits["shortest_edge"], limits["longest_edge"]
        )
    transform = PixelTransform(size, (width, height), (0, 0), (width, height))
    return ImageLayout.of([PatchGrid(transform, patch)], [PatchGrid(transform, patch * merge)])


def pixtral_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """One view of the image's own shape, each square group of patches one token: Mistral 3.

    The tokens that break the lines and end the image are no image tokens: they hold no features.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Raises:
        ValueError: The image is so long and narrow that shrinking leaves nothing of it.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import Mistral3Config, PixtralImageProcessorPil
        >>> processor = SimpleNamespace(
        ...     image_processor=PixtralImageProcessorPil(), patch_size=14, spatial_merge_size=2
        ... )
        >>> layout = pixtral_layout(processor, Mistral3Config(), (280, 168))
        >>> layout.grids[0].rows, layout.grids[0].cols, layout.n_positions
        (6, 10, 240)
    """
    patch, merge = processor.patch_size, processor.spatial_merge_size
    width, height = size
    given = settings(processor)
    if given["do_resize"]:
        limits = edges(given["size"])
        longest = limits.get("longest_edge")
        height, width = get_resize_output_image_size(
            blank(size),
            (limits["height"], limits["width"]) if longest is None else longest,
            patch * merge,
            ChannelDimension.FIRST,
        )
    if not width or not height:
        raise ValueError(
            f"an image of {size[0]}x{size[1]} pixels is too long and narrow: the image processor "
            f"would shrink it to {width}x{height}: crop it"
        )
    transform = PixelTransform(size, (width, height), (0, 0), (width, height))
    view = PatchGrid(transform, config.vision_config.patch_size)
    return ImageLayout.of([view], [PatchGrid(transform, patch * merge)])


def siglip2_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """A tower alone whose patches are as many as a limit allows, in the image's shape: SigLIP 2.

    Args:
        processor: The tower's image processor.
        config: The tower's config.
        size: (width, height) of the image.
        n_images: How many images the sample has: a tower reads them one by one.

    Example:
        >>> from transformers import Siglip2ImageProcessorPil, Siglip2VisionConfig
        >>> layout = siglip2_layout(Siglip2ImageProcessorPil(), Siglip2VisionConfig(), (400, 200))
        >>> layout.grids[0].rows, layout.grids[0].cols
        (11, 22)
    """
    given = settings(processor)
    patch = given["patch_size"]
    width, height = size
    if given["do_resize"]:
        height, width = get_image_size_for_max_num_patches(
            height, width, patch, given["max_num_patches"]
        )
    transform = PixelTransform(size, (width, height), (0, 0), (width, height))
    grid = PatchGrid(transform, patch)
    return ImageLayout.of([grid], [grid])

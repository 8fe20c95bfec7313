"""Families whose tiles stay apart in the token sequence: Idefics3, SmolVLM, InternVL, Mllama."""

import math
from typing import Any

from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    get_optimal_tiled_canvas as internvl_canvas,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size
from transformers.models.mllama.image_processing_pil_mllama import (
    get_image_size_fit_to_canvas,
)
from transformers.models.mllama.image_processing_pil_mllama import (
    get_optimal_tiled_canvas as mllama_canvas,
)

from vlm_lens.geometry.grid import PatchGrid
from vlm_lens.geometry.layout import ImageLayout, blank, square
from vlm_lens.geometry.settings import edges, settings
from vlm_lens.geometry.transform import PixelTransform, Size


def idefics3_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """Tiles, then the whole image, all pixel-shuffled to fewer tokens: Idefics3, SmolVLM.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import Idefics3Config, Idefics3ImageProcessorPil
        >>> processor = SimpleNamespace(image_processor=Idefics3ImageProcessorPil())
        >>> config = Idefics3Config(vision_config={"patch_size": 14}, scale_factor=2)
        >>> layout = idefics3_layout(processor, config, (640, 480))
        >>> len(layout.views), len(layout.tokens)  # 3 x 4 tiles of 13 x 13 tokens each
        (13, 2197)
        >>> layout.grids[0].visible, layout.grids[-1].visible
        ((0.0, 0.0, 160.0, 160.0), (0.0, 0.0, 640.0, 480.0))
    """
    given = settings(processor)
    tile = edges(given["max_image_size"])["longest_edge"]
    columns, rows = _idefics3_tiles(given, size, tile)
    views = _tiles(size, (columns * tile, rows * tile), tile)
    if len(views) > 1:
        views.append(_whole(size, tile))
    return _shuffled(views, config.vision_config.patch_size, config.scale_factor)


def internvl_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """Tiles, then the whole image if there are several, all pixel-shuffled: InternVL.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import GotOcr2ImageProcessorPil, InternVLConfig
        >>> tiles = GotOcr2ImageProcessorPil(size={"height": 448, "width": 448})
        >>> settings = {"crop_to_patches": True}
        >>> processor = SimpleNamespace(image_processor=tiles, images_kwargs=settings)
        >>> layout = internvl_layout(processor, InternVLConfig(), (800, 400))
        >>> len(layout.views), len(layout.tokens)
        (3, 768)
        >>> layout.grids[1].visible
        (400.0, 0.0, 800.0, 400.0)
    """
    given = settings(processor)
    target = edges(given["size"])
    tile = square((target["height"], target["width"]))
    columns, rows = 1, 1
    if given["crop_to_patches"] and given["max_patches"] > 1:
        limits = given["min_patches"], given["max_patches"]
        columns, rows = internvl_canvas(size[::-1], (tile, tile), *limits)
    views = _tiles(size, (columns * tile, rows * tile), tile)
    if len(views) > 1:
        views.append(_whole(size, tile))
    factor = int(1 / config.downsample_ratio)
    return _shuffled(views, config.vision_config.patch_size, factor, n_class=1)


def mllama_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """Tiles that text reads by cross-attention; the image has one token without a place: Mllama.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import MllamaConfig, MllamaImageProcessorPil
        >>> processor = SimpleNamespace(image_processor=MllamaImageProcessorPil())
        >>> config = MllamaConfig(vision_config={"image_size": 224, "patch_size": 14})
        >>> layout = mllama_layout(processor, config, (600, 300))
        >>> len(layout.views), layout.n_positions, layout.tokens
        (2, 257, ('cross_attention',))
        >>> layout.views[1].visible
        (300.0, 0.0, 600.0, 300.0)
    """
    width, height = size
    given = settings(processor)
    tile, tiles = edges(given["size"])["height"], given["max_image_tiles"]
    canvas_height, canvas_width = map(int, mllama_canvas(height, width, tiles, tile))
    fitted = get_image_size_fit_to_canvas(height, width, canvas_height, canvas_width, tile)
    transforms = _tiles(
        size, (canvas_width, canvas_height), tile, resized=(int(fitted[1]), int(fitted[0]))
    )
    views = [PatchGrid(view, square(config.vision_config.patch_size)) for view in transforms]
    return ImageLayout.of(views, n_class=1, tokens=["cross_attention"])


def _idefics3_tiles(given: dict[str, Any], size: Size, tile: int) -> tuple[int, int]:
    """How many tiles lie side by side and on top of each other; (1, 1) for a single view."""
    if not given["do_image_splitting"]:
        return 1, 1
    height, width = size[::-1]
    if given["do_resize"]:
        limits = edges(given["size"])
        height, width = limits.get("height", height), limits.get("width", width)
        if "longest_edge" in limits:
            height, width = get_resize_output_image_size(
                blank(size), resolution_max_side=limits["longest_edge"]
            )
    # The longer side is rounded up to whole tiles first, and the other one follows it in ratio.
    ratio = width / height
    if width >= height:
        columns = math.ceil(width / tile)
        return columns, math.ceil(int(columns * tile / ratio) / tile)
    rows = math.ceil(height / tile)
    return math.ceil(int(rows * tile * ratio) / tile), rows


def _tiles(
    size: Size, canvas: Size, tile: int, *, resized: Size | None = None
) -> list[PixelTransform]:
    """The tiles of a canvas, row by row; the image fills it if it is not `resized` to less."""
    return [
        PixelTransform(size, resized or canvas, (left, top), (tile, tile))
        for top in range(0, canvas[1], tile)
        for left in range(0, canvas[0], tile)
    ]


def _whole(size: Size, tile: int) -> PixelTransform:
    return PixelTransform(size, (tile, tile), (0, 0), (tile, tile))


def _shuffled(
    views: list[PixelTransform], patch_size: Any, factor: int, *, n_class: int = 0
) -> ImageLayout:
    """Views of which square groups of patches, `factor` on each side, become one token."""
    patch = square(patch_size)
    return ImageLayout.of(
        [PatchGrid(view, patch) for view in views],
        [PatchGrid(view, patch * factor) for view in views],
        n_class=n_class,
    )

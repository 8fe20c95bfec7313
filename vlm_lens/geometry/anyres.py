"""Families that merge the tiles of an image into one grid: LLaVA-NeXT and LLaVA-OneVision."""

import math
from typing import Any

import torch
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import unpad_image

from vlm_lens.geometry.fixed import n_class_tokens
from vlm_lens.geometry.grid import PatchGrid, Spans
from vlm_lens.geometry.layout import ImageLayout, Token, blank, raster, square
from vlm_lens.geometry.settings import edges, settings
from vlm_lens.geometry.transform import PixelTransform, Size

# LLaVA-OneVision shrinks the merged grid only where it has clearly too many patches.
_TOLERATED = 1.1


def llava_next_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """The whole image, then its tiles as one grid with a newline behind every row: LLaVA-NeXT.

    Patches of the merged grid that lie wholly in padding are left out.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import CLIPVisionConfig, LlavaNextConfig, LlavaNextImageProcessorPil
        >>> side = {"height": 336, "width": 336}
        >>> tiles = LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size=side)
        >>> vision = CLIPVisionConfig(image_size=336, patch_size=112)
        >>> config = LlavaNextConfig(vision_config=vision)
        >>> layout = llava_next_layout(SimpleNamespace(image_processor=tiles), config, (800, 400))
        >>> [(grid.rows, grid.cols) for grid in layout.grids], len(layout.views)
        ([(3, 3), (3, 6)], 3)
        >>> layout.tokens[8:10], layout.tokens[14:16]
        (((0, 2, 2), (1, 0, 0)), ((1, 0, 5), 'newline'))
    """
    return _anyres_layout(processor, config, size, max_tiles=None)


def llava_onevision_layout(
    processor: Any, config: Any, size: Size, *, n_images: int = 1
) -> ImageLayout:
    """The same as LLaVA-NeXT, with a limit to the merged grid's patches: LLaVA-OneVision.

    A grid with too many patches is shrunk by bilinear interpolation; its cells are then larger
    than patches. Where a sample has several images, each has one view, padded to a square, and one
    newline.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import LlavaOnevisionConfig, LlavaOnevisionImageProcessorPil
        >>> processor = SimpleNamespace(image_processor=LlavaOnevisionImageProcessorPil())
        >>> config = LlavaOnevisionConfig()
        >>> layout = llava_onevision_layout(processor, config, (1600, 1200))
        >>> [(grid.rows, grid.cols) for grid in layout.grids], len(layout.tokens)
        ([(27, 27), (70, 93)], 7309)
        >>> llava_onevision_layout(processor, config, (80, 60), n_images=2).tokens[-1]
        'newline'
    """
    if n_images > 1:
        grid = PatchGrid(_squared(size, _tile(settings(processor), processor)), _patch(config))
        return ImageLayout.of([grid], [grid], tokens=[*raster(0, grid), "newline"])
    max_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    return _anyres_layout(processor, config, size, max_tiles=max_tiles)


def _anyres_layout(
    processor: Any, config: Any, size: Size, *, max_tiles: int | None
) -> ImageLayout:
    given = settings(processor)
    tile, patch = _tile(given, processor), _patch(config)
    base = PatchGrid(PixelTransform(size, (tile, tile), (0, 0), (tile, tile)), patch)
    canvas = _canvas(size, select_best_resolution(size[::-1], given["image_grid_pinpoints"]))
    columns, rows = (length // tile for length in canvas.processed_size)
    tiles = [
        PatchGrid(_window(canvas, col * tile, row * tile, tile), patch)
        for row in range(rows)
        for col in range(columns)
    ]
    merged = _merged(canvas, tile, patch, max_tiles=max_tiles)
    tokens: list[Token] = ["class"] * n_class_tokens(processor)
    tokens += raster(0, base)
    for row in range(merged.rows):
        tokens += [*((1, row, col) for col in range(merged.cols)), "newline"]
    n_class = getattr(processor, "num_additional_image_tokens", 0)
    # Of an image much narrower than a patch nothing is left, but newlines where it is high.
    grids = [base, merged] if merged.rows and merged.cols else [base]
    return ImageLayout.of([base, *tiles], grids, n_class=n_class, tokens=tokens)


def _tile(given: dict[str, Any], processor: Any) -> int:
    """Edge of a tile, which is also that of the view of the whole image."""
    size, crop = edges(given["size"]), edges(given["crop_size"] or {})
    sides = {*size.values(), *crop.values()}
    if len(sides) > 1:
        raise ValueError(
            f"{type(processor.image_processor).__name__} resizes to {size} and crops to {crop}, "
            "which is not supported: expected the same edge everywhere"
        )
    return sides.pop()


def _patch(config: Any) -> int:
    return square(config.vision_config.patch_size)


def _canvas(size: Size, resolution: tuple[int, int]) -> PixelTransform:
    """The image, resized and padded to one of the allowed resolutions (height, width)."""
    height, width = get_patch_output_size(blank(size), resolution, ChannelDimension.FIRST)
    left, top = (resolution[1] - width) // 2, (resolution[0] - height) // 2
    return PixelTransform(size, (width, height), (-left, -top), (resolution[1], resolution[0]))


def _window(canvas: PixelTransform, left: int, top: int, side: int) -> PixelTransform:
    x, y = canvas.crop_offset
    offset = (x + left, y + top)
    return PixelTransform(canvas.original_size, canvas.resized_size, offset, (side, side))


def _squared(size: Size, side: int) -> PixelTransform:
    """The image, padded to a square and then resized."""
    longest = max(size)
    resized = (size[0] * side / longest, size[1] * side / longest)
    left, top = ((longest - length) // 2 * side / longest for length in size)
    return PixelTransform(size, resized, (-left, -top), (side, side))


def _merged(canvas: PixelTransform, tile: int, patch: int, *, max_tiles: int | None) -> PatchGrid:
    """The grid of all tiles' patches, without padding, shrunk where there are too many."""
    per_tile = tile // patch
    cols, rows = (length // tile * per_tile for length in canvas.processed_size)
    # Which patches remain is Hugging Face's answer, on a tensor that holds their numbers.
    numbers = torch.arange(rows * cols).reshape(1, rows, cols)
    kept = unpad_image(numbers, canvas.original_size[::-1])[0]
    top, left = divmod(int(kept[0, 0]), cols) if kept.numel() else (0, 0)
    shape = _shrunk(kept.shape[0], kept.shape[1], per_tile, max_tiles)
    y_spans = _spans(top, kept.shape[0], shape[0], per_tile, patch, tile)
    x_spans = _spans(left, kept.shape[1], shape[1], per_tile, patch, tile)
    return PatchGrid(canvas, patch, (x_spans, y_spans))


def _shrunk(rows: int, cols: int, per_tile: int, max_tiles: int | None) -> tuple[int, int]:
    if max_tiles is None:
        return rows, cols
    ratio = math.sqrt(rows * cols / (max_tiles * per_tile**2))
    return (int(rows // ratio), int(cols // ratio)) if ratio > _TOLERATED else (rows, cols)


def _spans(first: int, kept: int, shown: int, per_tile: int, patch: int, tile: int) -> Spans:
    """The (start, end) of each cell in pixels of the canvas.

    Args:
        first: The first patch that is no padding.
        kept: How many patches there are from there on.
        shown: How many cells they are shrunk to.
        per_tile: Patches along a tile.
        patch: Edge of a patch.
        tile: Edge of a tile; what its patches leave over of it, no cell shows.
    """
    left_over = tile - per_tile * patch  # of each tile
    borders = [first + kept * i / max(shown, 1) for i in range(shown + 1)]
    starts = [math.floor(at / per_tile) * left_over + at * patch for at in borders[:-1]]
    ends = [(math.ceil(at / per_tile) - 1) * left_over + at * patch for at in borders[1:]]
    return tuple(zip(starts, ends, strict=True))

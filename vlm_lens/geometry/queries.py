"""Families whose image tokens are queries without a place: InstructBLIP, BLIP-2, Kosmos-2."""

from typing import Any

from vlm_lens.geometry.grid import PatchGrid
from vlm_lens.geometry.layout import ImageLayout, Token, square
from vlm_lens.geometry.transform import Size, pixel_transform


def query_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """One view, read by the queries of a Q-Former: InstructBLIP, BLIP-2.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import BlipImageProcessorPil, InstructBlipConfig
        >>> processor = SimpleNamespace(image_processor=BlipImageProcessorPil())
        >>> config = InstructBlipConfig(vision_config={"patch_size": 96}, num_query_tokens=3)
        >>> layout = query_layout(processor, config, (640, 480))
        >>> layout.tokens, layout.n_positions
        (('query', 'query', 'query'), 17)
        >>> layout.views[0].box(0, 1)
        (160.0, 0.0, 320.0, 120.0)
    """
    return _queries(processor, config, size, n_queries=config.num_query_tokens)


def kosmos2_layout(processor: Any, config: Any, size: Size, *, n_images: int = 1) -> ImageLayout:
    """One view, read by learned latent queries: Kosmos-2.

    Args:
        processor: The model's processor.
        config: The model's config.
        size: (width, height) of the image.
        n_images: How many images the sample has; it makes no difference.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import CLIPImageProcessorPil, Kosmos2Config
        >>> processor = SimpleNamespace(image_processor=CLIPImageProcessorPil())
        >>> layout = kosmos2_layout(processor, Kosmos2Config(), (640, 480))
        >>> len(layout.tokens), layout.n_positions
        (64, 257)
    """
    return _queries(processor, config, size, n_queries=config.latent_query_num)


def _queries(processor: Any, config: Any, size: Size, *, n_queries: int) -> ImageLayout:
    transform = pixel_transform(size, processor)
    view = PatchGrid(transform, square(config.vision_config.patch_size))
    tokens: list[Token] = ["query"] * n_queries
    return ImageLayout.of([view], n_class=1, tokens=tokens)

"""Turn images into the inputs of a vision tower alone, which reads them one by one."""

from collections.abc import Sequence
from typing import Any

import torch

from vlm_lens.geometry import ImageLayout, LayoutFunction
from vlm_lens.inputs.batch import Inputs
from vlm_lens.inputs.images import load_image
from vlm_lens.inputs.token_kinds import Modality, Role
from vlm_lens.inputs.token_map import TokenMap


def prepare_pictures(processor: Any, config: Any, *, images: Any, layout: LayoutFunction) -> Inputs:
    """Prepares images for a tower alone, and maps its positions to the images' pixels.

    Args:
        processor: The tower's image processor, or a processor that has one.
        config: The tower's config.
        images: An image or a list of images, each a sample of its own; see `load_image`.
        layout: Where the tower's positions lie, e.g. `vlm_lens.geometry.class_token_layout`.

    Returns:
        The inputs, on the CPU. Their token maps are of the tower's own positions.

    Raises:
        TypeError: There is no image.
        OSError: An image file does not exist; see `load_image`.

    Example:
        >>> from PIL import Image
        >>> from transformers import CLIPImageProcessorPil, CLIPVisionConfig
        >>> from vlm_lens.geometry import class_token_layout
        >>> inputs = prepare_pictures(
        ...     CLIPImageProcessorPil(),
        ...     CLIPVisionConfig(),
        ...     images=Image.new("RGB", (640, 480)),
        ...     layout=class_token_layout,
        ... )
        >>> inputs
        Inputs(1 sample of 50 positions, 1 image: pixel_values [1, 3, 224, 224], on cpu)
        >>> inputs.token_map
        [TokenMap(50 positions: 50 image (7x7))]
    """
    batched = isinstance(images, Sequence) and not isinstance(images, str)
    sources: list[Any] = list(images) if batched else [images]
    if not sources or any(source is None for source in sources):
        raise TypeError("expected an image, or a list of images, for a vision tower: pass images=")
    pictures = [load_image(source) for source in sources]
    image_processor = getattr(processor, "image_processor", processor)
    made = image_processor(images=pictures, return_tensors="pt")
    tensors = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    layouts: list[Any] = [layout(processor, config, picture.size) for picture in pictures]
    filled_up = tensors.get("pixel_attention_mask")
    width = layouts[0].n_positions if filled_up is None else filled_up.shape[1]
    return Inputs(
        tensors=tensors,
        token_map=[_map_of(one, width) for one in layouts],
        images=[[picture] for picture in pictures],
        texts=[""] * len(pictures),
        batched=batched,
        tokenizer=None,
        image_token_id=None,
    )


def _map_of(layout: ImageLayout, width: int) -> TokenMap:
    """The positions of one picture: class and register tokens, its patches, what fills it up."""
    names = ["<patch>" if isinstance(token, tuple) else f"<{token}>" for token in layout.tokens]
    n, n_padding = len(names), width - len(names)
    shown: list[Modality] = ["image"] * n
    filled_up: list[Modality] = ["padding"] * n_padding
    role: list[Role] = ["prompt"] * width
    return TokenMap(
        tokens=[*names, *["<pad>"] * n_padding],
        modality=shown + filled_up,
        role=role,
        image_index=[*[0] * n, *[-1] * n_padding],
        layouts=[layout],
        special_tokens=frozenset(),
    )

"""How the pixels that a vision encoder sees map to the original image: pure functions on numbers.

All coordinates are continuous, in pixels, from the top left corner, x before y: the pixel in column
``x`` and row ``y`` covers ``[x, x + 1) x [y, y + 1)`` and has its centre at ``(x + 0.5, y + 0.5)``.
"""

from dataclasses import dataclass
from typing import Any

from vlm_lens.geometry.settings import edges, settings

Number = int | float
Size = tuple[int, int]
Extent = tuple[Number, Number]
Box = tuple[Number, Number, Number, Number]


@dataclass(frozen=True)
class PixelTransform:
    """How the pixels that the vision tower sees map to the original image.

    The original image is resized, and a window is cut from the resized one: all that is left of it
    after cropping, or one of several tiles.

    Attributes:
        original_size: (width, height) of the original image.
        resized_size: (width, height) of the whole image after resizing. Not whole numbers where a
            crop of the image, or the image with its padding, is what is resized.
        crop_offset: (left, top) of the window in the resized image. Negative where the window
            starts in the padding around it.
        processed_size: (width, height) of the window, the size of ``pixel_values``.

    Example:
        >>> transform = PixelTransform((200, 100), (64, 32), (16, 0), (32, 32))
        >>> transform.to_original((0, 0, 32, 32))
        (50.0, 0.0, 150.0, 100.0)
        >>> transform.to_processed((100, 50))
        (16.0, 16.0)
    """

    original_size: Size
    resized_size: Extent
    crop_offset: Extent
    processed_size: Size

    def to_original(self, box: Box) -> Box:
        """Maps a box of the processed image to the original one.

        Args:
            box: (x0, y0, x1, y1) in pixels of the processed image.

        Returns:
            (x0, y0, x1, y1) in pixels of the original image. Padding lies outside of it: such
            coordinates are negative or beyond its size.
        """
        x0, y0, x1, y1 = box
        return (
            self._to_original(x0, axis=0),
            self._to_original(y0, axis=1),
            self._to_original(x1, axis=0),
            self._to_original(y1, axis=1),
        )

    def to_processed(self, point: tuple[Number, Number]) -> tuple[Number, Number]:
        """Maps a point (x, y) of the original image to the processed one, in its pixels.

        A point that was cropped away comes out negative or beyond the processed size.
        """
        return self._to_processed(point[0], axis=0), self._to_processed(point[1], axis=1)

    def _to_original(self, value: Number, *, axis: int) -> Number:
        # Multiplied before divided: whole results then come out whole.
        in_resized = value + self.crop_offset[axis]
        return in_resized * self.original_size[axis] / self.resized_size[axis]

    def _to_processed(self, value: Number, *, axis: int) -> Number:
        in_resized = value * self.resized_size[axis] / self.original_size[axis]
        return in_resized - self.crop_offset[axis]


def pixel_transform(original_size: Size, processor: Any) -> PixelTransform:
    """Works out what an image processor does to an image of a given size.

    Args:
        original_size: (width, height) of the image.
        processor: A Hugging Face processor, or an image processor alone. Read are its
            ``do_resize`` and ``size`` (``shortest_edge``, or ``height`` and ``width``),
            ``do_center_crop`` and ``crop_size``, ``do_pad`` and ``backend``.

    Raises:
        ValueError: The processor resizes or pads in another way.

    Example:
        >>> from transformers import CLIPImageProcessorPil
        >>> pixel_transform((640, 480), CLIPImageProcessorPil())
        PixelTransform(original_size=(640, 480), resized_size=(298, 224), crop_offset=(37, 0), \
processed_size=(224, 224))
    """
    given = settings(processor)
    image_processor = getattr(processor, "image_processor", processor)
    name = type(image_processor).__name__
    if given.get("do_pad"):
        raise ValueError(
            f"{name} pads its images (do_pad=True), which is not "
            "supported: use an image processor that resizes and crops, as CLIP's or SigLIP's"
        )
    resized = original_size
    if given.get("do_resize"):
        resized = _resized_size(original_size, edges(given["size"]), name)
    if not given.get("do_center_crop"):
        return PixelTransform(original_size, resized, (0, 0), resized)
    crop = edges(given["crop_size"])
    window = (crop["width"], crop["height"])
    offset = tuple(
        _crop_start(length, cut, image_processor)
        for length, cut in zip(resized, window, strict=True)
    )
    return PixelTransform(original_size, resized, (offset[0], offset[1]), window)


def _resized_size(original_size: Size, size: dict[str, int], name: str) -> Size:
    if size.keys() == {"height", "width"}:
        return size["width"], size["height"]
    if size.keys() == {"shortest_edge"}:
        width, height = original_size
        short, long = min(original_size), max(original_size)
        new_short, new_long = size["shortest_edge"], int(size["shortest_edge"] * long / short)
        return (new_short, new_long) if width <= height else (new_long, new_short)
    raise ValueError(
        f"{name} resizes to {size}, which is not supported: expected "
        "'shortest_edge' alone, or 'height' and 'width'"
    )


def _crop_start(length: int, cut: int, image_processor: Any) -> int:
    spare = length - cut
    # An odd number of padded pixels: Pillow's processors pad one more in front, torchvision's one
    # more behind.
    if getattr(image_processor, "backend", "pil") == "torchvision":
        return int(spare / 2)
    return spare // 2

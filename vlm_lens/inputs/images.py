"""Load one image from any of the usual sources as an RGB ``PIL.Image``."""

import os
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor

_CHANNELS = (1, 3, 4)
# A scheme of two letters or more, so that a Windows drive is not one; pathlib turns :// into :/.
_URL = re.compile(r"^([a-z][a-z0-9+.-]+:/|data:)", re.IGNORECASE)
# The values that mean white in Pillow's modes of more than 8 bits, smallest first: the first one
# that no value of the image exceeds is taken.
_WHITE_LEVELS = {"I": (255, 65535), "F": (1, 255, 65535)}
# Resampled float images overshoot [0, 1] by rounding errors; those are no mistake of the caller.
_ROUNDING = 1e-4


def load_image(source: ImageSource) -> Image.Image:
    """Loads an image, upright and in RGB, decoded to its last byte.

    Every problem with the source surfaces here, before a model runs. The result is a new image:
    changing it leaves the source as it was.

    Args:
        source: One of

            - a path to an image file (an animation gives its first frame),
            - a PIL image of any mode (an animation gives its current frame),
            - a numpy array ``(height, width)``, ``(height, width, 1 | 3 | 4)``: ``uint8``, or float
              with values in [0, 1],
            - a torch tensor ``(channels, height, width)``, ``(height, width, channels)`` or
              ``(height, width)`` with the same dtypes. Where both ends could be the channels, the
              first one is taken.

    Returns:
        The image in mode ``"RGB"``. Its EXIF rotation is applied. Transparent parts are laid over
        white, as Hugging Face's image processors do. Grey images of more than 8 bits are scaled,
        not cut off: 16-bit ones by their full scale, 32-bit ones by the full scale that their
        values suggest (1 for floats, 255 or 65535), or from their smallest to their largest value
        where none does.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: The path is a directory.
        TypeError: The source is none of the above, or an array of another dtype.
        ValueError: The source is a URL, an empty, damaged or foreign file, or an array whose shape
            or values do not fit.

    Example:
        >>> import numpy as np
        >>> load_image(np.zeros((20, 30), dtype=np.uint8)).size
        (30, 20)
    """
    if isinstance(source, str | os.PathLike):
        return _from_file(os.fspath(source))
    if isinstance(source, Image.Image):
        return _to_rgb(source, name="the PIL image")
    if isinstance(source, Tensor):
        return _from_array(_channels_last(source), name=f"a tensor of shape {tuple(source.shape)}")
    if isinstance(source, np.ndarray):
        return _from_array(source, name=f"an array of shape {source.shape}")
    raise TypeError(
        f"expected an image as a path, PIL image, numpy array or torch tensor, got "
        f"{type(source).__name__}: convert it first (PIL.Image.open reads file objects)"
    )


def _from_file(path: str) -> Image.Image:
    if _URL.match(path):
        raise ValueError(
            f"expected an image file on disk, got the URL {path[:80]!r}: download it first, "
            "nothing is fetched from the network"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"expected an image file, but {path[:400]!r} does not exist: check the path "
            f"(relative paths start at {Path.cwd()})"
        )
    if os.path.isdir(path):
        raise IsADirectoryError(
            f"expected an image file, but {path!r} is a directory: pass the path of one file in it"
        )
    if os.path.getsize(path) == 0:
        raise ValueError(
            f"expected an image file, but {path!r} is empty (0 bytes): get the file again"
        )
    with open(path, "rb") as file:
        try:
            image = Image.open(file)
        except UnidentifiedImageError as error:
            raise ValueError(
                f"expected an image file, but Pillow recognises no image format in {path!r}: "
                "check that it is an image, and convert it to PNG or JPEG"
            ) from error
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"expected an image of a usual size, but {path!r} is too large for Pillow: {error} "
                "Make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS = None if you know where it is "
                "from"
            ) from error
        except Exception as error:  # each of Pillow's decoders has its own kinds of error
            raise _damaged(repr(path), error) from error
        return _to_rgb(image, name=repr(path))


def _to_rgb(image: Image.Image, *, name: str) -> Image.Image:
    if 0 in image.size:
        raise ValueError(
            f"expected at least one pixel, but {name} is {image.width}x{image.height} pixels"
        )
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # as above, while it decodes
        raise _damaged(name, error) from error
    if image.mode in _WHITE_LEVELS or image.mode.startswith("I;16"):
        image = _to_8_bits(image, name=name)
    return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _damaged(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"expected a whole image, but {name} cannot be decoded ({error}): it is damaged or cut "
        "short, get the file again"
    )


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _to_8_bits(image: Image.Image, *, name: str) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite values, but {name} has NaN or infinity: replace them")
    return Image.fromarray(np.rint(255 * _scaled(values, image.mode)).astype(np.uint8))


def _scaled(
    values: Float64[np.ndarray, "height width"], mode: str
) -> Float64[np.ndarray, "height width"]:
    low, high = values.min(), values.max()
    for white in _WHITE_LEVELS.get(mode, (65535,)):
        if low >= 0 and high <= white:
            return values / white
    return (values - low) / max(high - low, np.finfo(np.float64).tiny)


def _channels_last(tensor: Tensor) -> Shaped[np.ndarray, "..."]:
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:  # numpy has no such dtype
        tensor = tensor.float()
    if tensor.ndim == 3 and tensor.shape[0] in _CHANNELS:
        tensor = tensor.permute(1, 2, 0)
    return tensor.numpy()


def _from_array(array: Shaped[np.ndarray, "..."], *, name: str) -> Image.Image:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
    if not fits or array.size == 0:
        raise ValueError(
            f"expected one image of shape (height, width) or (height, width, 1, 3 or 4 channels), "
            f"got {name}: pass the images of a batch one by one, and put a numpy array's "
            "channels last"
        )
    pixels = _to_uint8(array, name=name)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), name=name)


def _to_uint8(array: Shaped[np.ndarray, "..."], *, name: str) -> UInt8[np.ndarray, "..."]:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"expected pixels as uint8 in [0, 255] or float in [0, 1], got {array.dtype} in "
            f"{name}: convert it to one of the two"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also true for NaN
        raise ValueError(
            f"expected float pixels in [0, 1], got values from {low:g} to {high:g} in {name}: "
            "divide pixels in [0, 255] by 255, and undo any normalisation"
        )
    return np.rint(255 * np.clip(array.astype(np.float64), 0, 1)).astype(np.uint8)

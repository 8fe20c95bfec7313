"""Check one sound before a model runs on it."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor

SoundSource = Shaped[np.ndarray, "..."] | Shaped[Tensor, "..."]
Sounds = SoundSource | Sequence[SoundSource] | None


def load_sound(source: SoundSource) -> Float32[np.ndarray, " samples"]:
    """Returns a sound as an array of samples.

    Args:
        source: One channel of samples between -1 and 1, at the sampling rate that the model's
            feature extractor expects.

    Raises:
        TypeError: The source is no array or tensor of floats.
        ValueError: It is empty, or has several channels.

    Example:
        >>> load_sound(np.zeros(16_000)).shape
        (16000,)
    """
    array = source.detach().cpu().float().numpy() if isinstance(source, torch.Tensor) else source
    if not isinstance(array, np.ndarray) or not np.issubdtype(array.dtype, np.floating):
        given = array.dtype if isinstance(array, np.ndarray) else type(source).__name__
        raise TypeError(
            f"expected a sound as an array or tensor of floats, got {given}: decode it first, at "
            "the sampling rate of the processor's feature extractor"
        )
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"expected one channel of samples, got an array of shape {array.shape}: take the mean "
            "of the channels, and pass sounds one by one"
        )
    return array.astype(np.float32)

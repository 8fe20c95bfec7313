"""What a sound becomes: tokens, each with the seconds that it stands for."""

import math
from dataclasses import dataclass
from typing import Any

# Two convolutions and a pooling, of which the last two halve the frames.
_FRAMES_PER_TOKEN = 4


@dataclass(frozen=True)
class AudioLayout:
    """Which part of a sound each of its tokens stands for.

    Attributes:
        spans: The (start, end) of each token, in seconds. What it hears reaches a little further.
    """

    spans: tuple[tuple[float, float], ...]


def audio_layout(processor: Any, config: Any, n_samples: int) -> AudioLayout:
    """One token for every four frames of the spectrogram: Qwen2-Audio.

    Args:
        processor: The model's processor.
        config: The model's config.
        n_samples: How many samples the sound has, at the feature extractor's sampling rate.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import WhisperFeatureExtractor
        >>> processor = SimpleNamespace(feature_extractor=WhisperFeatureExtractor())
        >>> layout = audio_layout(processor, None, 16_000)
        >>> len(layout.spans), layout.spans[1]
        (25, (0.04, 0.08))
    """
    extractor = processor.feature_extractor
    frames = math.ceil(min(n_samples, extractor.n_samples) / extractor.hop_length)
    n_tokens = ((frames - 1) // 2 + 1 - 2) // 2 + 1
    step = _FRAMES_PER_TOKEN * extractor.hop_length / extractor.sampling_rate
    return AudioLayout(tuple((step * i, step * (i + 1)) for i in range(n_tokens)))

"""A neuron's exemplars: the patches and tokens of samples, and how active it is at each of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from vlm_lens.data import Sample
from vlm_lens.inputs import load_image
from vlm_lens.neurons import Neuron

Kind = Literal["image", "text"]
"""A position shows a patch of an image, or is a token of text."""

KINDS: tuple[Kind, ...] = get_args(Kind)

SCALE = 10.0
"""A neuron's largest activation is 10 on the scale of its exemplars, as in "Deciphering"."""


@dataclass(frozen=True, eq=False)
class SampleView:
    """The positions of one sample at which a neuron is read: image patches and text tokens.

    This is all that a simulator is shown. Special tokens, padding, sounds and image tokens that
    show no patch (a class token, the end of a row, a query) are not among the positions.

    Attributes:
        number: The sample's place in the data set.
        sample: What was asked: images, text and annotations.
        kinds: "image" or "text" for each position, in the order of the sequence.
        tokens: The token at each position; "" at patches that no language model reads.
        roles: "prompt" or "answer" for each position.
        image_index: Which of the sample's images each position shows; -1 for text.
        boxes: The patch in pixels of that image (x0, y0, x1, y1), ends exclusive; NaN for text.

    Raises:
        ValueError: There is not one entry for each position, or a kind is unknown.

    Example:
        >>> view = SampleView(
        ...     number=0, sample=Sample(images=[], text="a red cat"), kinds=("text",) * 3,
        ...     tokens=("a", " red", " cat"), roles=("prompt",) * 3,
        ...     image_index=np.full(3, -1), boxes=np.full((3, 4), np.nan))
        >>> view
        SampleView(sample 0: 0 patches, 3 tokens)
        >>> view.is_kind("text").tolist()
        [True, True, True]
    """

    number: int
    sample: Sample
    kinds: tuple[Kind, ...]
    tokens: tuple[str, ...]
    roles: tuple[Literal["prompt", "answer"], ...]
    image_index: Int[np.ndarray, " n"]
    boxes: Float[np.ndarray, "n 4"]

    def __post_init__(self) -> None:
        counts = {
            name: len(getattr(self, name))
            for name in ("kinds", "tokens", "roles", "image_index", "boxes")
        }
        if len(set(counts.values())) > 1:
            raise ValueError(f"expected one entry for each position in every list, got {counts}")
        if unknown := sorted(set(self.kinds) - set(KINDS)):
            raise ValueError(f"unknown kind {unknown[0]!r}: expected one of {KINDS}")

    def __len__(self) -> int:
        return len(self.kinds)

    def __repr__(self) -> str:
        patches = self.kinds.count("image")
        return f"SampleView(sample {self.number}: {patches} patches, {len(self) - patches} tokens)"

    def is_kind(self, kind: Kind) -> Bool[np.ndarray, " n"]:
        """Which positions are patches ("image"), or tokens ("text")."""
        return self._is_patch if kind == "image" else ~self._is_patch

    @cached_property
    def _is_patch(self) -> Bool[np.ndarray, " n"]:
        return np.array([kind == "image" for kind in self.kinds], dtype=bool)

    def picture(self, image: int = 0) -> Image.Image | None:
        """One of the sample's images in RGB; None if it is not known (any more)."""
        if image >= len(self.sample.images):
            return None
        return load_image(self.sample.images[image])

    @property
    def pictured(self) -> list[int]:
        """The images of which there are patches."""
        return sorted({int(image) for image in self.image_index if image >= 0})


@dataclass(frozen=True, eq=False, repr=False)
class Exemplar:
    """A sample, and how active a neuron is in it.

    Attributes:
        view: The positions.
        values: The activation at each, from 0 (none, or negative) to 10 (the neuron's largest).
        predicted: What a simulator expected, on a scale of its own and NaN where it says nothing;
            None if there was none.
    """

    view: SampleView
    values: Float[np.ndarray, " n"]
    predicted: Float[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.view), len(self.values)}
        lengths |= set() if self.predicted is None else {len(self.predicted)}
        if len(lengths) > 1:
            raise ValueError(
                f"expected one value for each of {len(self.view)} positions, got {sorted(lengths)}"
            )

    @property
    def peak(self) -> float:
        """The largest value, 0 where there is no position."""
        return float(self.values.max(initial=0.0))

    def __repr__(self) -> str:
        return f"Exemplar({self.view!r}, peak {self.peak:.3g})"


@dataclass(frozen=True, eq=False, repr=False)
class Exemplars:
    """What a neuron is explained from, or an explanation of it is tested on.

    Attributes:
        neuron: Which one.
        top: The samples in which it is most active, best first.
        random: Samples drawn from all, which show what it is usually like.
        maximum: The activation that is 10 on the scale of the exemplars.
    """

    neuron: Neuron
    top: tuple[Exemplar, ...]
    random: tuple[Exemplar, ...]
    maximum: int | float

    @property
    def every(self) -> tuple[Exemplar, ...]:
        """The top samples, then the random ones."""
        return (*self.top, *self.random)

    @property
    def values(self) -> Float[np.ndarray, " n"]:
        """The values of all of them, one exemplar after the other."""
        return np.concatenate([one.values for one in self.every] or [np.zeros(0)])

    def is_kind(self, kind: Kind) -> Bool[np.ndarray, " n"]:
        """Which of these values are at patches ("image"), or at tokens ("text")."""
        found = [one.view.is_kind(kind) for one in self.every]
        return np.concatenate(found or [np.zeros(0, dtype=bool)])

    def __repr__(self) -> str:
        return (
            f"Exemplars({self.neuron}: {len(self.top)} top and {len(self.random)} random samples, "
            f"10 is {self.maximum:.4g})"
        )


def scaled(activations: Float[np.ndarray, " n"], maximum: int | float) -> Float[np.ndarray, " n"]:
    """Activations from 0 to 10: negative ones become 0, the largest one 10, linear in between.

    As in "Deciphering Functions of Neurons in Vision-Language Models" (arXiv 2502.18485).

    Raises:
        ValueError: The largest activation is not positive.

    Example:
        >>> scaled(np.array([-1.0, 2.0, 4.0]), 4.0).tolist()
        [0.0, 5.0, 10.0]
    """
    if not maximum > 0:
        raise ValueError(f"expected a neuron with a positive activation, its largest is {maximum}")
    return np.clip(activations.astype(np.float64) * (SCALE / maximum), 0.0, SCALE)

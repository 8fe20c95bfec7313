"""The samples in which a neuron is most active: what is shown of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from vlm_lens.analyses.exemplars import SCALE, Exemplar
from vlm_lens.analyses.explanations import Explanations
from vlm_lens.data import Sample
from vlm_lens.explorer.spaces import Entry, Space, entries_of
from vlm_lens.geometry import Box
from vlm_lens.inputs import load_image
from vlm_lens.inputs.token_map import TokenMap
from vlm_lens.model import HookedVLM
from vlm_lens.neurons import Neuron
from vlm_lens.statistics import NeuronStatistics

N_CARDS = 6
_FAINT = 0.05
"""Patches that are less active than this share of the neuron's largest activation are not drawn."""

_AROUND = 12
_MAPS_KEPT = 64


@dataclass(frozen=True, eq=False)
class Card:
    """One sample, and where in it a neuron is active.

    Attributes:
        number: The sample's place in its data set.
        value: The neuron's largest activation in it.
        picture: The image in which it is most active; None if it is most active in text.
        image: Which of the sample's images that is.
        boxes: Patches of that image in its pixels, and from 0 to 1 how active the neuron is there.
        tokens: Text tokens, and how active it is at each.
    """

    number: int
    value: float
    picture: Image.Image | None = None
    image: int = 0
    boxes: tuple[tuple[Box, float], ...] = ()
    tokens: tuple[tuple[str, float], ...] = field(default=())

    @property
    def crop(self) -> Box | None:
        """The part of the picture around what is at least half as active as the most active."""
        if self.picture is None or not self.boxes:
            return None
        peak = max(share for _, share in self.boxes)
        strong = np.array([box for box, share in self.boxes if share >= peak / 2])
        room = np.median(strong[:, 2:] - strong[:, :2], axis=0)
        low = np.maximum(strong[:, :2].min(0) - room, 0)
        high = np.minimum(strong[:, 2:].max(0) + room, self.picture.size)
        return (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


class Cards:
    """Top samples of neurons, from explanations or else from statistics.

    Args:
        model: The model, to prepare samples with; it does not run.
        statistics: With the numbers of top samples.
        samples: The samples that the statistics are of, in their order.
        explanations: With exemplars, of which every activation is known.
    """

    def __init__(
        self,
        model: HookedVLM,
        *,
        statistics: NeuronStatistics | None = None,
        samples: Sequence[Sample] | None = None,
        explanations: Explanations | None = None,
    ) -> None:
        self._model, self._statistics = model, statistics
        self._samples, self._explanations = samples, explanations
        self._maps: OrderedDict[int, TokenMap] = OrderedDict()
        self._sorted: dict[str, list[Tensor]] = {}

    def of(self, neuron: Neuron, space: Space) -> list[Card]:
        """The cards of a neuron, best first; none where nothing is known.

        Args:
            neuron: Which one.
            space: What the positions of its hook point are.
        """
        if self._explanations is not None and neuron in self._explanations:
            exemplars = self._explanations[neuron].exemplars
            scale = float(exemplars.maximum) / SCALE
            return [_of_exemplar(one, scale) for one in exemplars.top[:N_CARDS]]
        found = self._statistics
        if found is None or self._samples is None or neuron.name not in found.sites:
            return []
        columns = self._top(found, neuron.name)
        if not len(columns[0]):
            return []
        numbers, ordinals, values = (column[:, neuron.index].tolist() for column in columns)
        return [
            self._card(number, ordinal, value, space)
            for number, ordinal, value in zip(numbers, ordinals, values, strict=True)
        ]

    def _top(self, found: NeuronStatistics, name: str) -> list[Tensor]:
        """Numbers, positions and values of a hook point's top samples, put in order once."""
        if name not in self._sorted:
            top = found.sites[name].top
            columns = (top.samples, top.positions, top.values)
            self._sorted[name] = [column[:N_CARDS] for column in columns]
        return self._sorted[name]

    def _card(self, number: int, ordinal: int, value: float, space: Space) -> Card:
        """From the place of the largest activation; what the others are is not known."""
        if not 0 <= number < len(self._samples or ()):
            raise IndexError(
                f"the statistics name sample {number}, but there are {len(self._samples or ())} "
                "samples: pass those that the statistics were collected on"
            )
        assert self._samples is not None
        sample = self._samples[number]
        found = entries_of(space.kind, self._map(number, sample))
        if found is None or ordinal >= len(found.entries):
            return Card(number, value, tokens=((sample.text, 0.0),))
        entry = found.entries[ordinal]
        if entry.box is not None:
            picture = load_image(sample.images[entry.image])
            return Card(number, value, picture, entry.image, ((entry.box, 1.0),))
        near = found.entries[max(0, ordinal - _AROUND // 2) : ordinal + _AROUND // 2]
        return Card(number, value, tokens=_shares(near, entry))

    def _map(self, number: int, sample: Sample) -> TokenMap:
        if number not in self._maps:
            inputs = self._model.prepare(text=sample.text, images=sample.images or None)
            self._maps[number] = inputs.token_map[0]
            if len(self._maps) > _MAPS_KEPT:
                self._maps.popitem(last=False)
        return self._maps[number]


def _shares(near: Sequence[Entry], peak: Entry) -> tuple[tuple[str, float], ...]:
    shown = (entry for entry in near if entry.box is None)
    return tuple((entry.label, float(entry is peak)) for entry in shown)


def _of_exemplar(exemplar: Exemplar, scale: float) -> Card:
    view, shares = exemplar.view, exemplar.values / SCALE
    value = exemplar.peak * scale
    if not len(shares):
        return Card(view.number, value)
    peak = int(shares.argmax())
    image = int(view.image_index[peak])
    picture = view.picture(image) if view.kinds[peak] == "image" else None
    boxes: tuple[tuple[Box, float], ...] = ()
    if picture is not None:
        its = np.flatnonzero(view.image_index == image)
        boxes = tuple((_box(view.boxes[i]), float(shares[i])) for i in its if shares[i] >= _FAINT)
    words = [i for i, kind in enumerate(view.kinds) if kind == "text"]
    near = sorted(sorted(words, key=lambda i: abs(i - peak))[:_AROUND])
    tokens = tuple((view.tokens[i], float(shares[i])) for i in near)
    return Card(view.number, value, picture, max(image, 0), boxes, tokens)


def _box(row: Float[np.ndarray, " 4"]) -> Box:
    x0, y0, x1, y1 = row.tolist()
    return x0, y0, x1, y1

"""Explanations as fields and tensors that results on disk hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_lens.analyses.exemplars import KINDS, Exemplar, Exemplars, SampleView
from vlm_lens.analyses.explaining.explained import ExplainedNeuron
from vlm_lens.analyses.explaining.explanation import Explanation
from vlm_lens.analyses.explaining.scoring import Score
from vlm_lens.analyses.explaining.split import shown_in
from vlm_lens.data import Sample
from vlm_lens.neurons import Neuron
from vlm_lens.results import packing

_ROLES = ("prompt", "answer")
_HALVES = ("exemplars", "held_out")


def packed(
    explained: Sequence[ExplainedNeuron], *, shown: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields and tensors."""
    views: dict[SampleView, int] = {}
    values: list[np.ndarray] = []

    def exemplar(one: Exemplar) -> dict[str, Any]:
        values.append(one.values)
        if one.predicted is not None:
            values.append(one.predicted)
        view = views.setdefault(one.view, len(views))
        return {"view": view, "predicted": one.predicted is not None}

    neurons = [
        {
            "neuron": str(one.neuron),
            "maximum": one.exemplars.maximum,
            "explanation": packing.packed(one.explanation, "", {}),
            "score": packing.packed(one.score, "", {}),
            **{half: [exemplar(e) for e in getattr(one, half).top[:shown]] for half in _HALVES},
        }
        for one in explained
    ]
    fields = {"neurons": neurons, "views": [_view_fields(view) for view in views]}
    boxes = [view.boxes for view in views]
    tensors = {
        "values": torch.from_numpy(np.concatenate([*values, np.zeros(0)])),
        "boxes": torch.from_numpy(np.concatenate([*boxes, np.zeros((0, 4))])),
    }
    return fields, tensors


def unpacked(
    fields: Mapping[str, Any], tensors: Mapping[str, Tensor], samples: Sequence[Sample] | None
) -> tuple[ExplainedNeuron, ...]:
    """What `packed` took apart.

    Raises:
        ValueError: The samples are not those that were explained.
    """
    boxes, values = tensors["boxes"].numpy(), _Taken(tensors["values"].numpy())
    lengths = [len(view["kinds"]) for view in fields["views"]]
    starts = np.cumsum([0, *lengths])
    views = [
        _view(view, boxes[start:stop], samples)
        for view, start, stop in zip(fields["views"], starts[:-1], starts[1:], strict=True)
    ]

    def exemplars(one: Mapping[str, Any], half: str) -> Exemplars:
        top = []
        for entry in one[half]:
            view = views[entry["view"]]
            its_values = values.take(len(view))
            predicted = values.take(len(view)) if entry["predicted"] else None
            top.append(Exemplar(view, its_values, predicted))
        return Exemplars(Neuron.parse(one["neuron"]), tuple(top), (), float(one["maximum"]))

    neurons = []
    for one in fields["neurons"]:
        both = {half: exemplars(one, half) for half in _HALVES}
        explanation = packing.built(Explanation, one["explanation"], {})
        score = packing.built(Score, one["score"], {})
        neurons.append(ExplainedNeuron(explanation, score, **both))
    return tuple(neurons)


class _Taken:
    """Values, taken from the front in the order in which they were written."""

    def __init__(self, values: np.ndarray) -> None:
        self._values, self._place = values, 0

    def take(self, n: int) -> np.ndarray:
        self._place += n
        return self._values[self._place - n : self._place]


def _view_fields(view: SampleView) -> dict[str, Any]:
    return {
        "number": view.number,
        "shown": shown_in(view.sample),
        "text": view.sample.text,
        "kinds": "".join(kind[0] for kind in view.kinds),
        "tokens": list(view.tokens),
        "roles": "".join(role[0] for role in view.roles),
        "image_index": view.image_index.tolist(),
    }


def _view(
    fields: Mapping[str, Any], boxes: np.ndarray, samples: Sequence[Sample] | None
) -> SampleView:
    number = int(fields["number"])
    sample = Sample(images=[], text=fields["text"])
    if samples is not None:
        if number >= len(samples) or shown_in(samples[number]) != fields["shown"]:
            raise ValueError(
                f"sample {number} is not the one that was explained: pass the samples that explain "
                "was given, or none"
            )
        sample = samples[number]
    return SampleView(
        number=number,
        sample=sample,
        kinds=tuple(next(kind for kind in KINDS if kind[0] == one) for one in fields["kinds"]),
        tokens=tuple(fields["tokens"]),
        roles=tuple(next(role for role in _ROLES if role[0] == one) for one in fields["roles"]),
        image_index=np.array(fields["image_index"], dtype=np.int64),
        boxes=boxes,
    )

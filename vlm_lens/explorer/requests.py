"""What an explorer answers: the same questions whether they come from a browser or from Python.

Answers are a dictionary that JSON can hold, and buffers of float32 in the order that is named there
as "arrays".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from vlm_lens.explorer.ablation import Ablations
from vlm_lens.explorer.cards import Card, Cards
from vlm_lens.explorer.facts import Results
from vlm_lens.explorer.layers import Layers
from vlm_lens.explorer.spaces import Space, described, rounded
from vlm_lens.explorer.subject import Subject
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.neurons.neuron import natural_order, split_name
from vlm_lens.plots import style
from vlm_lens.results import name_of

Answer = tuple[dict[str, Any], list[bytes]]
SUMMARIES = ("largest", "image", "text", "selectivity", "effect")
"""The numbers of each neuron that the strip of a layer can show, in the order of the buffers."""

MOST_ACTIVE = 20
_THUMBNAIL = 160
_FLOW = ("vision_encoder", "audio_encoder", "qformer", "projector")


class Requests:
    """Answers the questions of the explorer's page.

    Args:
        subject: The prompt and its answer.
        layers: The hook points.
        results: What is known of neurons.
        cards: Their top samples.

    Example:
        >>> from vlm_lens import HookedVLM
        >>> from vlm_lens.explorer.subject import make_subject
        >>> model = HookedVLM.from_pretrained("shapes-llava")
        >>> subject = make_subject(model, model.prepare(text="what color ?"))
        >>> requests = Requests(subject, Layers(subject), Results(), Cards(model))
        >>> found, buffers = requests({"kind": "layer", "name": "blocks.0.mlp.hook_post"})
        >>> found["arrays"], len(np.frombuffer(buffers[0], np.float32))
        (['largest', 'text', 'effect'], 384)
    """

    def __init__(self, subject: Subject, layers: Layers, results: Results, cards: Cards) -> None:
        self.subject, self.layers, self.results, self.cards = subject, layers, results, cards
        self._ablations = Ablations(subject)
        self._thumbnails: dict[tuple[int, int], dict[str, Any]] = {}

    def __call__(self, asked: Mapping[str, Any]) -> Answer:
        """Answers one question.

        Args:
            asked: Its "kind", "about", "layer", "neuron", "position" or "ablate", and what that
                method takes.

        Raises:
            ValueError: There is no such kind, or an argument is of no use.
            KeyError: There is no such hook point.
            IndexError: There is no such neuron or entry.
        """
        kinds: dict[str, Callable[..., Answer]] = {
            "about": self.about,
            "layer": self.layer,
            "neuron": self.neuron,
            "position": self.position,
            "ablate": self.ablate,
        }
        kind = asked.get("kind")
        if kind not in kinds:
            raise ValueError(f"expected a request of {list(kinds)}, got {kind!r}")
        return kinds[kind](**{key: value for key, value in asked.items() if key != "kind"})

    def about(self) -> Answer:
        """The prompt, its images, all position spaces and all hook points.

        Where queries get a place by their attention, also the patches, and as a buffer how much
        each query attends to each of them.
        """
        subject, spread = self.subject, self.layers.spread
        spaces = {space.key: space for space in self.layers.spaces.values()}
        buffers = [] if spread is None or spread.note else [_floats(spread.shown)]
        return {
            "model": type(subject.model.hf_model).__name__,
            "name": name_of(subject.model.hf_model),
            "prompt": subject.prompt.texts[0],
            "answer": subject.answer,
            "own": subject.is_own,
            "images": [picture(image) for image in subject.prompt.images[0]],
            "spaces": {key: self._described(space) for key, space in spaces.items()},
            "patches": None if spread is None else spread.described(),
            "points": [self._point(name) for name in sorted(self.layers.sizes, key=_flow)],
            "arrays": ["attention"] if buffers else [],
        }, buffers

    def _described(self, space: Space) -> dict[str, Any]:
        spread = self.layers.spread
        queries = None if spread is None else spread.queries_of(space)
        return {**described(space), **({} if queries is None else {"query": queries})}

    def _point(self, name: str) -> dict[str, Any]:
        component, layer, site = split_name(name)
        about = {"name": name, "component": component, "layer": layer, "site": site}
        return {**about, "n": self.layers.sizes[name], "space": self.layers.spaces[name].key}

    def layer(self, name: str) -> Answer:
        """Numbers that sum up each neuron of a hook point; see `SUMMARIES`."""
        layer = self.layers[name]
        found = {summary: getattr(layer, summary) for summary in SUMMARIES}
        known = {key: values for key, values in found.items() if values is not None}
        known = {key: values for key, values in known.items() if np.isfinite(values).any()}
        return {"arrays": list(known)}, [_floats(values) for values in known.values()]

    def neuron(self, name: str, index: int) -> Answer:
        """A neuron's values at the entries that are shown, and what is known of it."""
        layer = self.layers[name]
        self._check_index("neuron", index, layer.activations.shape[1])
        values = layer.activations[layer.space.shown, index]
        return {
            "arrays": ["values"],
            "limit": float(layer.limit[index]),
            **self.known_of(Neuron(name, index)),
        }, [_floats(values)]

    def known_of(self, neuron: Neuron, *, cards: bool = True) -> dict[str, Any]:
        """What results say of a neuron, and its top samples unless these are not asked for."""
        space = self.layers.spaces[neuron.name]
        found = self.cards.of(neuron, space) if cards else []
        facts = [vars(fact) for fact in self.results.about(neuron)]
        return {"facts": facts, "cards": [self._drawn(card) for card in found]}

    def _drawn(self, card: Card) -> dict[str, Any]:
        """A top sample as the page is told of it; many neurons have the same ones."""
        key = (card.number, card.image)
        if card.picture is not None and key not in self._thumbnails:
            self._thumbnails[key] = picture(card.picture, longest=_THUMBNAIL)
        return {
            "number": card.number,
            "value": card.value,
            "picture": None if card.picture is None else self._thumbnails[key],
            "boxes": [rounded(box) for box, _ in card.boxes],
            "shares": [round(share, 3) for _, share in card.boxes],
            "crop": rounded(card.crop),
            "tokens": [[token, round(share, 3)] for token, share in card.tokens],
        }

    def position(self, name: str, entry: int) -> Answer:
        """The neurons of a hook point that are most active at one of the entries shown."""
        layer = self.layers[name]
        self._check_index("entry", entry, len(layer.space.shown))
        place = int(layer.space.shown[entry])
        chosen = layer.most_active(place, MOST_ACTIVE)
        values = layer.activations[place, chosen]
        return {"neurons": chosen.tolist(), "arrays": ["values"]}, [_floats(values)]

    def ablate(self, neurons: Sequence[Sequence[Any]]) -> Answer:
        """The answer and its first token's probabilities without some neurons."""
        chosen = [Neuron(str(name), index) for name, index in neurons]
        known = {neuron.name: self.layers.sizes[neuron.name] for neuron in chosen}
        found = self._ablations(NeuronSet(chosen, sizes=known))
        changes = [vars(change) for change in found.tokens]
        return {"clean": found.clean, "ablated": found.ablated, "tokens": changes}, []

    def _check_index(self, what: str, index: int, n: int) -> None:
        if not 0 <= index < n:
            raise IndexError(f"there is no {what} {index}: there are 0 to {n - 1}")

    def first(self) -> Neuron:
        """A neuron to start with: in the middle of the language model, what helps the answer."""
        names = [name for name in self.layers.sizes if name.endswith("mlp.hook_post")]
        language = [name for name in names if split_name(name)[0] in ("language_model", "decoder")]
        candidates = language or names or list(self.layers.sizes)
        layer = self.layers[candidates[len(candidates) // 2]]
        scores = layer.largest if layer.effect is None else layer.effect
        return Neuron(candidates[len(candidates) // 2], int(np.argmax(scores)))


def picture(image: Image.Image, *, longest: int | None = None) -> dict[str, Any]:
    """An image in the page itself, perhaps made smaller, with its original size in pixels."""
    shown = image
    if longest is not None and max(image.size) > longest:
        shown = image.convert("RGB")
        shown.thumbnail((longest, longest))
    return {"uri": style.data_uri(shown), "width": image.width, "height": image.height}


def _floats(values: Float[np.ndarray, "*shape"]) -> bytes:
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def _flow(name: str) -> tuple[int, list[tuple[int, str]]]:
    """From images to words."""
    component = split_name(name)[0].partition(".")[0]
    return _FLOW.index(component) if component in _FLOW else len(_FLOW), natural_order(name)

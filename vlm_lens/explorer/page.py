"""The explorer as one page without a kernel: the same module, over data inside the page."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vlm_lens.explorer.layers import Layer
from vlm_lens.explorer.quantise import quantised
from vlm_lens.explorer.requests import Requests, picture
from vlm_lens.explorer.scripts import STANDALONE, STYLE
from vlm_lens.hooks import resolve_names
from vlm_lens.hooks.names import NamesFilter
from vlm_lens.neurons import Neuron, NeuronSet
from vlm_lens.plots.page import policy

_BUDGET = 4_000_000
"""So many letters of activations fit into a page of 5 MB."""
_KNOWN = 700_000
"""So many letters of what is known of neurons fit in beside them, and more if they are fewer."""

_FALLBACK = 48
"""So many neurons are in the page that stands in for the widget."""
_FALLBACK_ATTENTION = 200_000
"""So many letters of the attention that gives queries a place fit into it."""
_LONGEST = 320

_OFF = (
    "Activations are stored in a byte each, between the smallest and the largest value of their "
    "neuron, and so are off by at most (largest - smallest) / 510."
)
_CHOSEN = (
    "Of each hook point {neurons:,} neurons at most are here: in turn the next by largest "
    "activation, by effect on the answer, and by selectivity for image and for text."
)
_NO_ATTENTION = "What would give the queries a place is too much for this small page."
_NO_WIDGET = "The live widget is not available here; this is a small page without a kernel."


def page(
    requests: Requests,
    *,
    names: NamesFilter = None,
    neurons: int = 512,
    start: Neuron,
    kept: NeuronSet,
) -> str:
    """The page as HTML; it holds everything and asks for nothing.

    Args:
        requests: The explorer's answers.
        names: Hook points; by default as many layers of MLP neurons as fit into 5 MB.
        neurons: At most so many of each hook point.
        start: The neuron that is shown first; its hook point is in the page in any case.
        kept: Neurons that are kept; theirs are too.

    Raises:
        HookNameError: A name matches nothing that can be explored.
        ValueError: The number of neurons is not positive, or an activation is not finite.
    """
    if neurons < 1:
        raise ValueError(f"expected at least one neuron of each hook point, got {neurons}")
    sizes = requests.layers.sizes
    chosen = resolve_names(names, sizes) if names is not None else _that_fit(requests, neurons)
    chosen = [name for name in sizes if name in {*chosen, start.name, *kept.names}]
    data = _data(requests, chosen, neurons=neurons, start=start, kept=kept)
    few = any(sizes[name] > neurons for name in chosen)
    notes = [_OFF, *([_CHOSEN.format(neurons=neurons)] if few else []), *data.pop("notes")]
    return _render({**data, "notice": "", "note": " ".join(notes)})


def fallback(requests: Requests, *, start: Neuron, kept: NeuronSet) -> str:
    """A small page with the hook point that is shown, for front ends that cannot run a widget."""
    here = NeuronSet(neuron for neuron in kept if neuron.name == start.name)
    data = _data(requests, [start.name], neurons=_FALLBACK, start=start, kept=here)
    images = requests.subject.prompt.images[0]
    data["about"]["images"] = [picture(image, longest=_LONGEST) for image in images]
    if sum(map(len, data["attention"])) > _FALLBACK_ATTENTION:
        data["attention"], data["about"]["patches"] = [], {"note": _NO_ATTENTION}
    data.pop("notes")
    return _render({**data, "notice": _NO_WIDGET, "note": _OFF}, bare=True)


def _that_fit(requests: Requests, neurons: int) -> list[str]:
    """The MLP neurons of all layers, or evenly chosen ones."""
    layers = requests.layers
    names = [name for name in layers.sizes if name.endswith("mlp.hook_post")]
    names = names or list(layers.sizes)

    def letters(name: str) -> float:
        return min(neurons, layers.sizes[name]) * len(layers.spaces[name].shown) * 4 / 3

    spread = layers.spread
    room = _BUDGET - (0 if spread is None or spread.note else spread.shown.nbytes * 4 / 3)
    for n in range(len(names), 1, -1):
        some = [names[i] for i in np.linspace(0, len(names) - 1, n).round().astype(int)]
        if sum(map(letters, some)) <= room:
            return some
    return names[-1:]


# Data ---------------------------------------------------------------------------------------------


def _data(
    requests: Requests, names: list[str], *, neurons: int, start: Neuron, kept: NeuronSet
) -> dict[str, Any]:
    about, attention = _about(requests, names)
    layers = {}
    for name in names:
        always = [neuron.index for neuron in (start, *kept) if neuron.name == name]
        indices = chosen_neurons(requests.layers[name], neurons, always=always)
        layers[name] = _packed(requests, name, indices)
    codes = [layer["codes"] for layer in layers.values()]
    pictures = _Known(_BUDGET + _KNOWN - sum(map(len, codes + attention)))
    known: dict[str, dict[int, Any]] = {name: {} for name in names}
    every = (Neuron(name, index) for name in names for index in layers[name]["indices"])
    for neuron in dict.fromkeys([start, *kept, *every]):  # what is looked at first comes first
        if neuron.name not in known:
            continue
        told = requests.known_of(
            neuron, cards=not pictures.notes
        )  # after the first that is too much
        if found := pictures.shared(told):
            known[neuron.name][neuron.index] = found
    return {
        "about": about,
        "attention": attention,
        "layers": layers,
        "known": known,
        "pictures": pictures.found,
        "shown": [start.name, start.index],
        "kept": [[neuron.name, neuron.index] for neuron in kept],
        "notes": pictures.notes,
    }


def _about(requests: Requests, names: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What there is at some hook points, and the attention that places their queries, if any."""
    about, buffers = requests.about()
    about["points"] = [point for point in about["points"] if point["name"] in names]
    used = {point["space"] for point in about["points"]}
    about["spaces"] = {key: space for key, space in about["spaces"].items() if key in used}
    if not any("query" in space for space in about["spaces"].values()):
        return {**about, "patches": None}, []
    return about, [_base64(np.frombuffer(buffer, "<f4")) for buffer in buffers]


def chosen_neurons(layer: Layer, n: int, *, always: list[int]) -> list[int]:
    """The neurons of a layer that a page holds, by number.

    Args:
        layer: The layer.
        n: How many, where it has more.
        always: Neurons that are among them, and beyond the number if need be.
    """
    total = layer.activations.shape[1]
    if total <= n:
        return list(range(total))
    effect = np.zeros(total) if layer.effect is None else np.abs(layer.effect)
    rankings = [layer.largest, effect, layer.selectivity, -layer.selectivity]
    orders = [np.argsort(-scores, kind="stable") for scores in rankings if np.any(scores)]
    chosen = dict.fromkeys(always)
    for rank in range(total):
        for order in orders:
            if len(chosen) < max(n, len(always)):
                chosen.setdefault(int(order[rank]))
    return sorted(chosen)


def _packed(requests: Requests, name: str, indices: list[int]) -> dict[str, Any]:
    layer = requests.layers[name]
    found, buffers = requests.layer(name)
    values = layer.activations[layer.space.shown][:, indices].T
    packed = quantised(values)
    return {
        "indices": indices,
        "codes": _base64(packed.codes),
        "low": _base64(packed.low),
        "high": _base64(packed.high),
        "limit": _base64(layer.limit[indices]),
        "arrays": found["arrays"],
        "numbers": [_base64(np.frombuffer(buffer, "<f4")[indices]) for buffer in buffers],
    }


class _Known:
    """What is known of neurons, as far as it fits; each picture of top samples once."""

    def __init__(self, room: int) -> None:
        self.found: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._places: dict[str, int] = {}
        self._room = max(room, _KNOWN)

    def shared(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of a neuron, its cards' pictures as numbers; nothing if nothing is."""
        if not known["facts"] and not known["cards"]:
            return {}
        facts, cards = known["facts"], known["cards"]
        new = {shown["uri"] for card in cards if (shown := card["picture"])} - self._places.keys()
        rest = [{**card, "picture": None} for card in cards]
        if not self._fits(facts):
            return {}
        if not self._fits(rest, *new):
            return {"facts": facts, "cards": []}
        return {
            "facts": facts,
            "cards": [{**card, "picture": self._place(card["picture"])} for card in cards],
        }

    def _fits(self, *parts: Any) -> bool:
        """Takes the room for some parts, if there is so much; else notes that there was not."""
        size = sum(len(json.dumps(part)) for part in parts)
        if size > self._room:
            self.notes = ["Not all that is known of these neurons fits into the page."]
            return False
        self._room -= size
        return True

    def _place(self, shown: dict[str, Any] | None) -> int | None:
        if shown is None:
            return None
        if shown["uri"] not in self._places:
            self._places[shown["uri"]] = len(self.found)
            self.found.append(shown)
        return self._places[shown["uri"]]


def _base64(array: Float[np.ndarray, "*shape"] | Any) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


# HTML ---------------------------------------------------------------------------------------------


def _render(data: dict[str, Any], *, bare: bool = False) -> str:
    environment = Environment(
        loader=PackageLoader("vlm_lens.explorer", "static"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    # No text from models or data can end the script element that it is in.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template("page.html").render(
        title=f"Neurons of {data['about']['name']}: {data['about']['prompt'].strip()}",
        policy=policy(STANDALONE),
        style=Markup(STYLE),
        script=Markup(STANDALONE),
        data=Markup(text),
        bare=bare,
    )

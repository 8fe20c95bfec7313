"""The stand-alone page holds what it says, asks for nothing, and stays small."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.explorer.conftest import requests_of
from tests.page import Page, assert_self_contained
from tests.tiny import Tiny
from vlm_lens.explorer import Explorer
from vlm_lens.explorer.layers import Layer
from vlm_lens.explorer.page import chosen_neurons, fallback, page
from vlm_lens.explorer.requests import Requests
from vlm_lens.explorer.spaces import Entry, Space
from vlm_lens.hooks.names import HookNameError
from vlm_lens.neurons import Neuron, NeuronSet

NAME = "blocks.1.mlp.hook_post"
START = Neuron(NAME, 5)


def data_of(html: str) -> dict[str, Any]:
    [data] = [text for kind, text in Page(html).scripts if kind == "application/json"]
    return json.loads(data)


def array(text: str, kind: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def test_a_page_is_self_contained(asked: Requests) -> None:
    html = page(asked, start=START, kept=NeuronSet())
    assert_self_contained(Page(html))
    assert "(largest - smallest) / 510" in html
    assert "connect-src" not in Page(html).policy


def test_what_is_in_it_is_the_caches_to_the_stated_error(asked: Requests) -> None:
    data = data_of(page(asked, start=START, kept=NeuronSet()))
    assert len(data["layers"]) == 3 + 3 + 1  # every MLP of tower, projector and language model
    for name, packed in data["layers"].items():
        layer = asked.layers[name]
        codes = array(packed["codes"], "u1").reshape(len(packed["indices"]), -1)
        low, high = array(packed["low"]), array(packed["high"])
        values = low[:, None] + codes / 255 * (high - low)[:, None]
        expected = layer.activations[:, packed["indices"]].T
        bound = (high - low) / 510
        assert (np.abs(values - expected) <= bound[:, None] * (1 + 1e-4) + 1e-9).all()
        for key, numbers in zip(packed["arrays"], packed["numbers"], strict=True):
            np.testing.assert_array_equal(array(numbers), getattr(layer, key)[packed["indices"]])
        np.testing.assert_array_equal(array(packed["limit"]), layer.limit[packed["indices"]])


def test_few_neurons_are_the_most_telling_and_those_in_use(asked: Requests) -> None:
    layer = asked.layers[NAME]
    assert layer.effect is not None
    firsts = {
        int(scores.argmax())
        for scores in (layer.largest, np.abs(layer.effect), layer.selectivity, -layer.selectivity)
    }
    assert firsts <= set(chosen_neurons(layer, 8, always=[]))
    kept = NeuronSet([Neuron(NAME, index) for index in (60, 61, 62)])
    data = data_of(page(asked, names=NAME, neurons=2, start=START, kept=kept))
    assert data["layers"][NAME]["indices"] == [5, 60, 61, 62]
    assert data["kept"] == [[NAME, 60], [NAME, 61], [NAME, 62]]
    assert "2 neurons at most" in data["note"]
    assert chosen_neurons(layer, 64, always=[]) == list(range(64))
    assert len(chosen_neurons(layer, 20, always=[3])) == 20


def test_names_and_numbers_are_checked(asked: Requests) -> None:
    data = data_of(page(asked, names="projector.*", start=START, kept=NeuronSet()))
    names = {name for name in asked.layers.sizes if name.startswith("projector.")}
    assert set(data["layers"]) == names | {NAME}  # what is shown is always there
    with pytest.raises(HookNameError, match="nowhere"):
        page(asked, names="nowhere", start=START, kept=NeuronSet())
    with pytest.raises(ValueError, match="at least one neuron"):
        page(asked, neurons=0, start=START, kept=NeuronSet())


def test_text_cannot_leave_its_script(llava: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_of(llava.model, answer="red")
    attack = "</script><script>alert(1)</script>"
    monkeypatch.setattr(
        requests, "known_of", lambda neuron, **_: {"facts": [{"text": attack}], "cards": []}
    )
    monkeypatch.setitem(vars(requests.subject.prompt), "texts", [attack])
    html = page(requests, names=NAME, start=START, kept=NeuronSet())
    assert attack not in html
    assert_self_contained(Page(html))
    assert data_of(html)["about"]["prompt"] == attack


def large(n_layers: int, n_neurons: int, n_entries: int) -> Requests:
    """As many activations as a large model has, without the model."""
    generator = np.random.default_rng(0)
    words = [Entry(i, f" word{i}", "text") for i in range(n_entries - 576)]
    patches = [
        Entry(
            len(words) + i,
            "<image>",
            "image",
            "prompt",
            0,
            0,
            divmod(i, 24),
            (0.5, 9.25, 14.0, 28.0),
        )
        for i in range(576)
    ]
    space = Space("tokens", "tokens", (*words, *patches))
    values = generator.normal(size=(n_entries, n_neurons)).astype(np.float32)
    layer = Layer(space, values, values[0])
    names = [f"blocks.{i}.mlp.hook_post" for i in range(n_layers)]

    class Layers(dict):
        sizes = dict.fromkeys(names, n_neurons)
        spaces = dict.fromkeys(names, space)
        spread = None

    requests = Requests.__new__(Requests)
    requests.layers = Layers.fromkeys(names, layer)  # type: ignore[assignment]
    requests.subject = SimpleNamespace(  # type: ignore[assignment]
        model=SimpleNamespace(hf_model=SimpleNamespace(name_or_path="tiny")),
        prompt=SimpleNamespace(texts=["what ?"], images=[[]]),
        answer="red",
        is_own=True,
    )
    requests.known_of = lambda neuron, **_: {"facts": [], "cards": []}  # type: ignore[method-assign]
    return requests


def test_eight_layers_of_512_neurons_and_600_positions_are_below_5_mb(unchecked: None) -> None:
    requests = large(32, 1024, 600)
    start = Neuron("blocks.3.mlp.hook_post", 700)
    html = page(
        requests,
        names=[f"blocks.{i}.mlp.hook_post" for i in range(8)],
        start=start,
        kept=NeuronSet(),
    )
    assert len(html) < 5_000_000
    data = data_of(html)
    assert [len(packed["indices"]) for packed in data["layers"].values()] == [512] * 8
    assert 700 in data["layers"][start.name]["indices"]
    # Without names, as many of the 32 layers as fit.
    html = page(requests, start=start, kept=NeuronSet())
    assert 4_000_000 < len(html) < 5_000_000
    assert {"blocks.0.mlp.hook_post", "blocks.31.mlp.hook_post"} <= set(data_of(html)["layers"])


def test_the_page_for_a_notebook_is_small(unchecked: None) -> None:
    requests = large(2, 4096, 1500)
    html = fallback(requests, start=Neuron("blocks.1.mlp.hook_post", 9), kept=NeuronSet())
    assert len(html) < 300_000
    assert "live widget is not available" in data_of(html)["notice"]


def test_a_file_that_cannot_be_written_is_refused_first(asked: Requests, tmp_path: Path) -> None:
    explorer = Explorer(asked, start=START)
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        explorer.to_html(tmp_path / "missing" / "page.html")
    explorer.to_html(str(tmp_path / "page.html"), names=NAME)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]

"""Queries get the place that `TokenMap.through` gives them, from the model's own attention."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.explorer.test_page import array, data_of
from vlm_lens.explorer.page import fallback, page
from vlm_lens.explorer.requests import Requests
from vlm_lens.explorer.spaces import Entry, Space
from vlm_lens.explorer.spread import Spread, spread_of
from vlm_lens.geometry import ImageLayout, PatchGrid, PixelTransform
from vlm_lens.inputs.token_map import TokenMap
from vlm_lens.neurons import Neuron, NeuronSet

PATTERN = {
    "blip2-opt": "qformer.blocks.0.cross_attn.hook_pattern",
    "blip2-t5": "qformer.blocks.0.cross_attn.hook_pattern",
    "instructblip-llama": "qformer.blocks.0.cross_attn.hook_pattern",
    "instructblip-t5": "qformer.blocks.0.cross_attn.hook_pattern",
    "kosmos2": "projector.attn.hook_pattern",
}
SITES = [
    ("blip2-opt", "blocks.1.mlp.hook_post"),
    ("blip2-opt", "qformer.blocks.1.mlp.hook_post"),
    ("instructblip-t5", "encoder.blocks.1.mlp.hook_post"),
    ("instructblip-t5", "qformer.blocks.0.hook_resid_post"),
    ("instructblip-t5", "projector.hook_out"),
    ("kosmos2", "blocks.1.mlp.hook_post"),
    ("kosmos2", "projector.hook_out"),
]


def spread_in(requests: Requests) -> Spread:
    assert requests.layers.spread is not None
    return requests.layers.spread


def mean_pattern(requests: Requests, name: str) -> torch.Tensor:
    """How much each query attends to each key, the mean over the heads of the only block."""
    model, arguments = requests.subject.model, requests.subject.arguments
    with torch.no_grad():
        _, cache = model.run_with_cache(arguments, names_filter=name)
    return cache[name][0].mean(0)


@pytest.mark.parametrize("family", PATTERN)
def test_weights_are_the_mean_of_the_caches_pattern(
    of_family: Callable[[str], Requests], family: str
) -> None:
    requests = of_family(family)
    spread, token_map = spread_in(requests), requests.subject.token_map
    mean = mean_pattern(requests, PATTERN[family])
    expected = mean[:, 1:17].T  # behind a class token; Kosmos-2's queries attend to queries, too
    np.testing.assert_allclose(spread.weights, expected, rtol=1e-6)
    assert spread.label == "mean of 4 heads"
    boxes = [entry.box for entry in spread.patches.entries]
    assert boxes == [token_map.patch_box(patch) for patch in range(1, 17)]
    about, [buffer] = requests({"kind": "about"})
    json.dumps(about, allow_nan=False)
    assert about["arrays"] == ["attention"]
    np.testing.assert_allclose(np.frombuffer(buffer, "<f4"), expected.flatten(), rtol=1e-6)
    assert (about["patches"]["queries"], len(about["patches"]["box"])) == (4, 16)


@pytest.mark.parametrize(("family", "name"), SITES)
def test_what_the_page_is_told_gives_what_through_gives(
    of_family: Callable[[str], Requests], family: str, name: str
) -> None:
    """A patch gets the sum over its image's queries of their values, times the weights."""
    requests = of_family(family)
    about, [buffer] = requests({"kind": "about"})
    _, [values] = requests({"kind": "neuron", "name": name, "index": 3})
    point = next(point for point in about["points"] if point["name"] == name)
    numbers = about["spaces"][point["space"]]["query"]
    of_query = {query: i for i, query in enumerate(numbers) if query >= 0}
    shown = np.frombuffer(values, "<f4")[[of_query[query] for query in range(4)]]
    weights = np.frombuffer(buffer, "<f4").reshape(-1, about["patches"]["queries"])
    model, token_map = requests.subject.model, requests.subject.token_map
    with torch.no_grad():
        _, cache = model.run_with_cache(requests.subject.arguments, names_filter=name)
    found = cache[name][0, :, 3]
    is_language = name.startswith(("blocks", "encoder"))
    at_queries = found[token_map.positions("image")] if is_language else found[:4]
    mean = mean_pattern(requests, PATTERN[family])
    heat = token_map.through(at_queries, mean)
    for patch, box in enumerate(about["patches"]["box"]):
        x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        assert weights[patch] @ shown == pytest.approx(heat[int(y), int(x)], abs=1e-5)


def test_only_what_has_queries_is_spread(of_family: Callable[[str], Requests]) -> None:
    about, _ = of_family("instructblip-t5")({"kind": "about"})
    kinds = {space["kind"]: "query" in space for space in about["spaces"].values()}
    assert kinds == {
        "patches": False,
        "queries": True,
        "queries and text": True,
        "text beside queries": False,
        "tokens": True,
        "decoder tokens": False,
    }
    both = next(s for s in about["spaces"].values() if s["kind"] == "queries and text")
    assert both["query"] == [0, 1, 2, 3] + [-1] * (len(both["at"]) - 4)


@pytest.mark.parametrize("family", ["llava_next", "mllama"])
def test_positions_with_a_place_are_not_spread(
    of_family: Callable[[str], Requests], family: str
) -> None:
    about, buffers = of_family(family)({"kind": "about"})
    assert about["patches"] is None
    assert buffers == about["arrays"] == []
    assert not any("query" in space for space in about["spaces"].values())


# Several images, several blocks ---------------------------------------------------------------


def two_images() -> TokenMap:
    """Each with three queries and 2 x 2 patches."""
    grid = PatchGrid(PixelTransform((8, 8), (4, 4), (0, 0), (4, 4)), patch_size=2)
    layout = ImageLayout.of([grid], n_class=1, tokens=("query", "query", "query"))
    return TokenMap(
        tokens=["<image>"] * 6 + ["what"],
        modality=["image", "image", "image", "image", "image", "image", "text"],
        role=["prompt"] * 7,
        image_index=[0, 0, 0, 1, 1, 1, -1],
        layouts=[layout] * 2,
        special_tokens=frozenset(),
    )


def test_each_image_has_its_own_queries_and_blocks_are_averaged() -> None:
    token_map = two_images()
    patterns = {f"block {i}": torch.rand(2, 5, 3, 5).softmax(-1) for i in range(3)}
    spread = spread_of(patterns, token_map)
    assert spread is not None
    assert spread.label == "mean of 5 heads of 3 blocks"
    mean = torch.stack([*patterns.values()]).mean((0, 2))
    values = torch.randn(7)
    tokens = tuple(
        Entry(i, "t", modality, image=image)
        for i, (modality, image) in enumerate(
            zip(token_map.modality, token_map.image_index, strict=True)
        )
    )
    space = Space("tokens", "tokens", tokens)
    assert spread.queries_of(space) == [0, 1, 2, 0, 1, 2, -1]
    for i, entry in enumerate(spread.patches.entries):
        x0, y0, *_ = entry.box or (0, 0)
        heat = token_map.through(values, mean[entry.image], image=entry.image)
        its = values[3 * entry.image : 3 * entry.image + 3].numpy()
        assert spread.weights[i] @ its == pytest.approx(heat[int(y0), int(x0)], abs=1e-6)
    assert spread.queries_of(Space("tokens", "few", tokens[:5])) is None  # one of them is missing
    assert spread_of({}, token_map) is None


# What is too much -----------------------------------------------------------------------------


def test_too_large_a_product_is_left_out_with_a_note(
    of_family: Callable[[str], Requests], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = of_family("blip2-opt")
    monkeypatch.setattr("vlm_lens.explorer.spread.MAX_WEIGHTS", 16 * 4 - 1)
    about, buffers = requests({"kind": "about"})
    assert buffers == about["arrays"] == []
    assert list(about["patches"]) == ["note"]
    assert "4 queries to 16 patches" in about["patches"]["note"]
    assert not any("query" in space for space in about["spaces"].values())
    data = data_of(page(requests, start=Neuron("blocks.1.mlp.hook_post", 5), kept=NeuronSet()))
    assert data["attention"] == []
    monkeypatch.setattr("vlm_lens.explorer.spread.MAX_WEIGHTS", 16 * 4)
    assert len(requests({"kind": "about"})[1]) == 1


def test_a_page_holds_the_attention_where_it_has_queries(
    of_family: Callable[[str], Requests], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, start = of_family("blip2-opt"), Neuron("blocks.1.mlp.hook_post", 5)

    def told(**options: Any) -> dict[str, Any]:
        return data_of(page(requests, **{"start": start, "kept": NeuronSet(), **options}))

    weights = spread_in(requests).weights.astype("<f4")
    [found] = told()["attention"]
    np.testing.assert_array_equal(array(found), weights.flatten())
    tower = Neuron("vision_encoder.blocks.0.mlp.hook_post", 0)
    without = told(start=tower, names=tower.name)
    assert (without["attention"], without["about"]["patches"]) == ([], None)
    assert len(data_of(fallback(requests, start=start, kept=NeuronSet()))["attention"]) == 1
    monkeypatch.setattr("vlm_lens.explorer.page._FALLBACK_ATTENTION", len(found) - 1)
    small = data_of(fallback(requests, start=start, kept=NeuronSet()))
    assert small["attention"] == []
    assert "too much for this small page" in small["about"]["patches"]["note"]

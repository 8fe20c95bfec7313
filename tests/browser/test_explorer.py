"""The explorer's page in a real browser, offline: what it shows, and that its parts are linked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.families import build
from tests.families.base import picture
from tests.tiny import Tiny
from vlm_lens import HookedVLM
from vlm_lens.explorer import Explorer, explore
from vlm_lens.inputs import TokenMap
from vlm_lens.neurons import NeuronSet

NAME = "blocks.1.mlp.hook_post"
ODD = [
    "patch",
    "<image>",
    "<bos>",
    "</script>",
    '"quoted"',
    "it's",
    "<b>bold</b>",
    "&amp;",
    "\n",
    "  ",
]
READY = "[data-ready]"
SHOWN = ".vx[data-neuron='{}']"


@pytest.fixture(scope="module")
def explorer(llava: Tiny) -> Explorer:
    inputs = llava.model.prepare(
        images=picture(0, size=(50, 34)), text="what color is the circle ?"
    )
    return explore(llava.model, inputs, answer="red square", neuron=f"{NAME}[5]")


@pytest.fixture
def page(explorer: Explorer, offline: Callable[..., Any], tmp_path: Path) -> Any:
    explorer.to_html(tmp_path / "page.html", names=["blocks.*.mlp.hook_post", "vision*hook_post"])
    opened = offline(tmp_path / "page.html")
    opened.wait_for_selector(READY)
    return opened


def activations(explorer: Explorer, name: str) -> np.ndarray:
    return explorer._requests.layers[name].activations


def opacities(page: Any, mark: str) -> dict[int, float]:
    """How strongly each entry is coloured; negative for the colour of negative values."""
    found = page.evaluate(
        """(mark) => [...document.querySelectorAll(mark)].map((node) => {
            const style = getComputedStyle(node);
            return [node.dataset.entry, mark === ".vx-patch" ? style.fill : style.backgroundColor];
        })""",
        mark,
    )
    shares = {}
    for entry, colour in found:
        red, _, blue, *opacity = map(float, re.findall(r"[\d.]+", colour))
        share = opacity[0] if opacity else 1.0
        shares[int(entry)] = -share if blue > red else share
    return shares


@pytest.mark.full
def test_picture_and_words_have_the_neurons_values(page: Any, explorer: Explorer) -> None:
    layer = explorer._requests.layers[NAME]
    for index in (5, 23):
        if index == 23:
            page.get_by_label("neuron", exact=True).fill("23")
            page.keyboard.press("Enter")
            page.wait_for_selector(SHOWN.format(f"{NAME}[23]"))
        expected = np.clip(layer.activations[:, index] / layer.limit[index], -1, 1) * 0.8
        shown = {**opacities(page, ".vx-patch"), **opacities(page, ".vx-chip[data-entry]")}
        assert len(shown) == len(layer.space)
        for entry, share in shown.items():
            assert share == pytest.approx(expected[entry], abs=0.01)


@pytest.mark.full
def test_the_strip_chooses_by_mouse_and_by_keys(page: Any, explorer: Explorer) -> None:
    order = np.argsort(-explorer._requests.layers[NAME].largest, kind="stable").tolist()
    before = page.locator(".vx-picture").screenshot()
    page.locator(".vx-strip").first.click(position={"x": 1, "y": 40})
    page.wait_for_selector(SHOWN.format(f"{NAME}[{order[0]}]"))
    assert page.locator(".vx-picture").screenshot() != before
    page.locator(".vx-strip").first.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(SHOWN.format(f"{NAME}[{order[1]}]"))
    page.keyboard.press("End")
    page.wait_for_selector(SHOWN.format(f"{NAME}[{order[-1]}]"))
    assert page.get_by_role("slider").get_attribute("aria-valuenow") == "63"
    page.get_by_label("sort neurons by").select_option("selectivity")
    page.get_by_role("slider").press("Home")
    preferred = int(np.argmax(explorer._requests.layers[NAME].selectivity))
    page.wait_for_selector(SHOWN.format(f"{NAME}[{preferred}]"))


def test_pointing_at_a_token_outlines_its_patch_and_back(page: Any, explorer: Explorer) -> None:
    entries = explorer._requests.layers[NAME].space.entries
    pos = next(i for i, entry in enumerate(entries) if entry.cell == (2, 1))
    outline = page.locator(".vx-outline").first
    assert outline.get_attribute("visibility") == "hidden"
    page.locator(f".vx-cell[data-entry='{pos}']").hover()
    assert outline.get_attribute("visibility") == "visible"
    edges = [float(outline.get_attribute(name)) for name in ("x", "y", "width", "height")]
    x0, y0, x1, y1 = entries[pos].box or (0, 0, 0, 0)
    assert edges == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.02)
    page.locator(".vx-answer").hover()
    assert outline.get_attribute("visibility") == "hidden"
    page.locator(f".vx-patch[data-entry='{pos}']").hover()
    linked = page.locator(".vx-read .vx-linked")
    assert linked.get_attribute("data-entry") == str(pos)
    assert "row 2, column 1" in page.locator(".vx-hint").inner_text()


@pytest.mark.parametrize("by", ["mouse", "keys"])
def test_a_patch_lists_its_neurons(page: Any, explorer: Explorer, by: str) -> None:
    found, _ = explorer._requests({"kind": "position", "name": NAME, "entry": 8})
    if by == "mouse":
        page.locator(".vx-patch[data-entry='8']").click()
    else:  # from the first patch, row 0 column 0, three to the right and one down
        page.locator(".vx-patch[tabindex='0']").focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
            page.keyboard.press(key)
    here = page.locator("[data-neuron].vx-neuron")
    here.first.wait_for()
    listed = here.evaluate_all("nodes => nodes.map(node => Number(node.dataset.neuron))")
    entry = int(page.locator("section[data-entry]").get_attribute("data-entry"))
    cell = explorer._requests.layers[NAME].space.entries[entry].cell
    if by == "keys":
        assert cell == (1, 2)
        found, _ = explorer._requests({"kind": "position", "name": NAME, "entry": entry})
    values = activations(explorer, NAME)[entry]
    steps = np.ptp(activations(explorer, NAME), axis=0) / 510  # values are stored in a byte
    assert len(listed) == len(found["neurons"])
    for one, other in zip(listed, found["neurons"], strict=True):
        assert abs(values[one] - values[other]) <= steps[one] + steps[other]
    here.nth(3).click()
    page.wait_for_selector(SHOWN.format(f"{NAME}[{listed[3]}]"))


def test_another_layer_and_component(page: Any, explorer: Explorer) -> None:
    page.get_by_label("layer", exact=True).select_option("2")
    page.wait_for_selector(SHOWN.format("blocks.2.mlp.hook_post[5]"))
    page.get_by_label("component").select_option("vision_encoder")
    name = "vision_encoder.blocks.2.mlp.hook_post"
    page.wait_for_selector(f".vx[data-neuron^='{name}']")
    assert page.locator(".vx-read .vx-chip").first.inner_text() == "class"
    assert page.locator(".vx-patch").count() == 16
    selectivity = page.locator("option[value='selectivity']")
    assert selectivity.get_attribute("disabled") is not None


def test_ablating_needs_a_kernel_and_says_so(page: Any) -> None:
    page.get_by_role("button", name="Ablate").click()
    assert "needs a running kernel" in page.get_by_role("alert").inner_text()


def test_keeping_lists_neurons(page: Any) -> None:
    keep = page.get_by_role("button", name="Keep", exact=True)
    keep.click()
    kept = page.get_by_role("group", name="kept neurons")
    assert f"{NAME}[5]" in kept.inner_text()
    kept.get_by_role("button", name=f"forget {NAME}[5]").click()
    assert kept.is_hidden()


def test_odd_tokens_are_text(llava: Tiny, offline: Callable[..., Any], tmp_path: Path) -> None:
    inputs = llava.model.prepare(images=picture(0), text="what color is the circle ? : . a one")
    token_map = inputs.token_map[0]
    tokens = list(token_map.tokens)
    for pos, token in zip(token_map.positions("text")[: len(ODD)], ODD, strict=True):
        tokens[pos] = token
    inputs.token_map[0] = TokenMap(**{**vars_of(token_map), "tokens": tokens})
    explorer = explore(llava.model, inputs, answer="red", neuron=f"{NAME}[5]")
    explorer.to_html(tmp_path / "page.html", names=NAME)
    page = offline(tmp_path / "page.html")
    page.wait_for_selector(READY)
    chips = page.locator(".vx-read .vx-chip").all_inner_texts()
    assert chips[1 : 1 + len(ODD)] == [*ODD[:-2], "↵", "␣␣"]
    assert page.locator(".vx-read b, .vx-read image, .vx-read script").count() == 0


def vars_of(token_map: TokenMap) -> dict[str, Any]:
    return {name: getattr(token_map, name) for name in TokenMap.__dataclass_fields__}


@pytest.mark.full
def test_dark_pages_are_dark_and_narrow_ones_fit(
    explorer: Explorer, offline: Callable[..., Any], tmp_path: Path
) -> None:
    explorer.to_html(tmp_path / "page.html", names=NAME)
    wide = {"width": 1200, "height": 800}
    inks = {}
    for scheme, viewport in (
        ("light", wide),
        ("dark", wide),
        ("dark", {"width": 400, "height": 800}),
    ):
        page = offline(tmp_path / "page.html", color_scheme=scheme, viewport=viewport)
        page.wait_for_selector(READY)
        assert page.locator(".vx").get_attribute("data-theme") == scheme
        colours = page.evaluate(
            "() => ['color', 'backgroundColor'].map(key => "
            "getComputedStyle(document.querySelector('.vx-read'))[key])"
        )
        inks[scheme] = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours]
        overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(overflow) <= 0
    assert inks["light"][0] < 200 < 600 < inks["light"][1]
    assert inks["dark"][1] < 200 < 600 < inks["dark"][0]


@pytest.mark.full
def test_tiles_and_the_whole_picture_can_be_told_apart(
    offline: Callable[..., Any], tmp_path: Path
) -> None:
    hf_model, processor = build("llava_next")
    model = HookedVLM(hf_model, processor=processor)
    inputs = model.prepare(images=picture(0, size=(50, 34)), text="what color ?")
    explore(model, inputs, answer="red").to_html(tmp_path / "page.html", names="blocks.1.mlp.*post")
    page = offline(tmp_path / "page.html")
    page.wait_for_selector(READY)
    assert page.locator(".vx-patch:visible").count() == 6 * 8
    page.get_by_label("patches", exact=True).select_option("1")
    assert page.locator(".vx-patch:visible").count() == 4 * 4


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["encoder.blocks.1.mlp.hook_post", "qformer.blocks.1.mlp.hook_post"]
)
def test_queries_are_spread_over_the_patches_they_attend_to(
    offline: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    hf_model, processor = build("instructblip-t5")
    model = HookedVLM(hf_model, processor=processor)
    inputs = model.prepare(images=picture(0, size=(50, 34)), text="what color ?")
    explorer = explore(model, inputs, answer="red", neuron=f"{name}[3]", effects=False)
    explorer.to_html(tmp_path / "page.html", names=name)
    page = offline(tmp_path / "page.html")
    page.wait_for_selector(READY)
    token_map = inputs.token_map[0]
    pattern = "qformer.blocks.0.cross_attn.hook_pattern"
    _, cache = model.run_with_cache(inputs, names_filter=[name, pattern])
    mean, queries = cache[pattern][0].mean(0), token_map.positions("image")  # the first four
    heat = token_map.through(cache[name][0, queries, 3], mean)
    assert shares_of_patches(page) == pytest.approx(as_shares(heat), abs=0.015)
    legend = page.locator(".vx-legend").first.inner_text()
    assert "queries have no place, so it is spread as they attend to patches" in legend
    # A query's own attention while it is pointed at, then the neuron again.
    page.locator(".vx-placeless").nth(1).hover()
    attention = as_shares(token_map.patch_heatmap(mean[1]))
    shown = [abs(share) for share in shares_of_patches(page)]  # neither orange nor blue
    assert shown == pytest.approx(attention, abs=0.015)
    assert "(0, 158, 115" in page.locator(".vx-patch").first.evaluate("e => e.style.fill")
    assert "of its attention" in page.locator(".vx-hint").inner_text()
    page.locator(".vx-answer").hover()
    assert shares_of_patches(page) == pytest.approx(as_shares(heat), abs=0.015)
    # A patch stands for the query that attends to it most.
    reader = queries[int(mean[:, 1 + 6].argmax())]
    page.locator(".vx-patch").nth(6).click()
    page.locator(f"section[data-entry='{reader}']").wait_for()
    assert page.locator(".vx-read .vx-linked").get_attribute("data-entry") == str(reader)


def shares_of_patches(page: Any) -> list[float]:
    found = opacities(page, ".vx-patch")
    return [found[entry] for entry in sorted(found)]


def as_shares(heat: np.ndarray) -> list[float]:
    """How strongly 4 x 4 patches of a picture of 50 x 34 pixels are coloured."""
    values = [
        heat[int((row + 0.5) * 8.5), int((col + 0.5) * 12.5)] for row, col in np.ndindex(4, 4)
    ]
    return [0.8 * value / max(map(abs, values)) for value in values]


def test_a_layer_with_more_neurons_than_pixels_has_a_lens(
    explorer: Explorer, offline: Callable[..., Any], tmp_path: Path
) -> None:
    explorer.to_html(tmp_path / "page.html", names=NAME)
    page = offline(tmp_path / "page.html", viewport={"width": 160, "height": 700})
    page.wait_for_selector(READY)
    lens = page.locator(".vx-lens")
    assert lens.is_visible()
    width = lens.bounding_box()["width"]
    lens.click(position={"x": width / 2, "y": 20})
    order = np.argsort(-explorer._requests.layers[NAME].largest, kind="stable").tolist()
    page.wait_for_timeout(50)
    shown = page.locator(".vx").get_attribute("data-neuron")
    assert shown in {f"{NAME}[{index}]" for index in order}


def test_the_page_that_stands_in_for_the_widget_runs_in_a_frame(
    explorer: Explorer, offline: Callable[..., Any], tmp_path: Path
) -> None:
    explorer.selection = NeuronSet([explorer.neuron])
    data, _ = explorer._repr_mimebundle_()
    explorer.selection = NeuronSet()
    (tmp_path / "notebook.html").write_text(data["text/html"], encoding="utf-8")
    page = offline(tmp_path / "notebook.html")
    frame = page.frame_locator("iframe")
    frame.locator(READY).wait_for()
    assert "live widget is not available" in frame.locator(".vx-note").first.inner_text()
    assert frame.locator(".vx").get_attribute("data-neuron") == f"{NAME}[5]"
    assert frame.get_by_role("button", name="Kept").get_attribute("aria-pressed") == "true"

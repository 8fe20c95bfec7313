"""Draws explorer.png: the explorer's page of the bundled model, with a neuron for squares.

Needs playwright and Chromium: ``python assets/explorer.py``. The page itself is on the site.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from vlm_lens import HookedVLM, explore, load_samples
from vlm_lens.analyses.explain import explain
from vlm_lens.neurons import NeuronSet
from vlm_lens.shapes_llava import IMAGES

NAME = "blocks.0.mlp.hook_post"
SQUARES = 220
PATCH = "[data-entry='31']"


def write_page(path: Path) -> None:
    """The page, with what the concepts explainer says of a few neurons."""
    model = HookedVLM.from_pretrained("shapes-llava")
    samples = load_samples("shapes-llava", n=64, split="train")
    neurons = NeuronSet.from_indices({NAME: [SQUARES, 243, 31, 339]})
    explanations = explain(model, samples, neurons, shuffles=3, answers=None)
    sample = load_samples(IMAGES)[0]
    inputs = model.prepare(images=sample.images, text=sample.text)
    explorer = explore(model, inputs, explanations=explanations, neuron=neurons[0])
    explorer.to_html(path, names="blocks.*.mlp.hook_post")


def main() -> None:
    """Writes the picture beside this file."""
    from playwright.sync_api import sync_playwright  # the page alone needs no browser

    target = Path(__file__).with_suffix(".png")
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = Path(folder) / "page.html"
        write_page(path)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(path.as_uri())
        page.wait_for_selector("[data-ready]")
        page.locator(f".vx-patch{PATCH}").click()
        page.locator(".vx-neuron").first.wait_for()
        page.screenshot(path=target, full_page=True)
        browser.close()


if __name__ == "__main__":
    main()

"""The card of the connector, from what was measured: `python -m vlm_lens.shapes_smollm2.release`.

The accuracies come from `vlm_lens.shapes_smollm2.evaluate --out weights/accuracy.json`, and with
``--ceiling`` from ``--out weights/ceiling.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from string import Template

from vlm_lens.shapes_llava.evaluate import table
from vlm_lens.shapes_smollm2 import WEIGHTS
from vlm_lens.shapes_smollm2.build import CONNECTOR
from vlm_lens.shapes_smollm2.train import COMPARING_LAYER, NAMING_LAYER, Recipe
from vlm_lens.whole_file import replace_file

TEMPLATE = Path(__file__).parent / "card.md"


def card() -> str:
    """The card: the template with recipe and accuracies filled in.

    Raises:
        FileNotFoundError: an accuracy was not measured yet.
    """
    recipe = Recipe()
    measured = {
        name: table(json.loads((WEIGHTS / f"{name}.json").read_text()))
        for name in ("accuracy", "ceiling")
    }
    return Template(TEMPLATE.read_text()).substitute(
        **measured,
        megabytes=f"{CONNECTOR.stat().st_size / 1e6:.1f}",
        rank=recipe.rank,
        words_steps=recipe.words_steps,
        steps=recipe.steps,
        images=recipe.images,
        tales=recipe.tales,
        naming_layer=NAMING_LAYER,
        comparing_layer=COMPARING_LAYER,
    )


if __name__ == "__main__":
    replace_file(WEIGHTS / "README.md", card().encode())

"""What lies beside the weights: `python -m vlm_lens.shapes_llava.release`.

Writes the model card from `accuracy.json`, and a folder of sample images with questions. The
accuracies themselves come from `vlm_lens.shapes_llava.evaluate --out weights/accuracy.json`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from string import Template

from PIL import Image
from transformers import AutoModelForImageTextToText

from vlm_lens.data.imagefolder import METADATA
from vlm_lens.data.sample import Sample
from vlm_lens.shapes_llava import IMAGES, WEIGHTS
from vlm_lens.shapes_llava.evaluate import table
from vlm_lens.shapes_llava.train import NAMING_LAYER, Phase, Recipe
from vlm_lens.shapes_llava.world import make_samples
from vlm_lens.whole_file import replace_file

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).parent / "card.md"
ACCURACY = "accuracy.json"
TRAINING_MINUTES = 49
"""How long the run took that gave the bundled weights."""
N_IMAGES = 5
RECTANGLE = (320, 240)
"""One sample is also stored in this size, as images from elsewhere have it."""


def card(weights: Path) -> str:
    """The model card: the template with parameters, recipe and accuracies filled in.

    Raises:
        FileNotFoundError: when the folder holds no `accuracy.json` or no model.
    """
    model = AutoModelForImageTextToText.from_pretrained(weights)
    recipe = Recipe()
    return Template(TEMPLATE.read_text()).substitute(
        parameters=f"{sum(weight.numel() for weight in model.parameters()):,}",
        megabytes=f"{(weights / 'model.safetensors').stat().st_size / 1e6:.1f}",
        accuracy=table(json.loads((weights / ACCURACY).read_text())),
        vision_layers=recipe.size.vision_layers,
        text_layers=recipe.size.text_layers,
        processes=recipe.processes,
        peak_lr=recipe.peak_lr,
        naming_layer=NAMING_LAYER,
        minutes=TRAINING_MINUTES,
        phases="\n".join(map(phase_row, recipe.phases)),
    )


def phase_row(phase: Phase) -> str:
    """One phase as a row of the card's table; scenes are those of one process and step."""
    asking = "images and told scenes" if phase.asking else "told scenes"
    return f"| {phase.steps:,} | {asking} | {phase.images} | {phase.tales} |"


def sample_images() -> Iterator[tuple[str, Sample]]:
    """Held-out scenes of three or four objects, with file names; the last one is a rectangle."""
    samples = make_samples(split="test", task="image", n=200, seed=1)
    full = [sample for sample in samples if len(sample.annotations["objects"]) >= 3]
    by_category = {sample.category: sample for sample in full}
    for index, sample in enumerate(list(by_category.values())[:N_IMAGES]):
        yield f"scene_{index}.png", sample
    yield f"scene_{N_IMAGES}.png", _as_rectangle(list(by_category.values())[N_IMAGES])


def _as_rectangle(sample: Sample) -> Sample:
    """Enlarges the scene and adds its border colour left and right, which the processor crops."""
    width, height = RECTANGLE
    [scene] = sample.images
    canvas = Image.new("RGB", RECTANGLE, scene.getpixel((0, 0)))
    large = scene.resize((height, height), Image.Resampling.BICUBIC)
    canvas.paste(large, ((width - height) // 2, 0))
    return Sample([canvas], sample.text, sample.answer, sample.category, sample.annotations)


def write_images(folder: Path) -> None:
    """Writes the sample images and their `metadata.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, sample in sample_images():
        sample.images[0].save(folder / name)
        entry = {"file_name": name, "text": sample.text, "answer": sample.answer}
        entry |= {"category": sample.category, "scene": sample.annotations["scene"]}
        lines.append(json.dumps(entry))
    replace_file(folder / METADATA, ("\n".join(lines) + "\n").encode())


def main() -> None:
    """Command line: writes card and sample images of the bundled weights."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    replace_file(WEIGHTS / "README.md", card(WEIGHTS).encode())
    write_images(IMAGES)
    log.info("wrote %s and %s", WEIGHTS / "README.md", IMAGES)


if __name__ == "__main__":
    main()

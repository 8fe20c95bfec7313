"""A synthetic world of shapes and handwritten digits, and a small VLM that was trained on it.

Importing this package needs neither torch nor transformers; the model lies in the folder
`WEIGHTS` and loads like any Hugging Face model:

    AutoModelForImageTextToText.from_pretrained(WEIGHTS)
    AutoProcessor.from_pretrained(WEIGHTS)
"""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the bundled model."""

IMAGES = Path(__file__).parent / "images"
"""Imagefolder of a few held-out scenes with questions (`metadata.jsonl`)."""

__all__ = ["IMAGES", "WEIGHTS"]

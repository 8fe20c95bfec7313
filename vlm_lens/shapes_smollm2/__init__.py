"""The `shapes` world in plain English, and a VLM that reads it with a real language model.

`shapes-smollm2` puts three parts together: the vision tower of `shapes-llava`, SmolLM2-135M from
its package, and what lies here: a trained connector between the two, with low-rank adapters for
the language model's attention. The language model's MLPs are those of SmolLM2, bit for bit.
"""

from pathlib import Path

NAME = "shapes-smollm2"
"""What `HookedVLM.from_pretrained` calls the model."""

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the trained connector."""

__all__ = ["NAME", "WEIGHTS"]

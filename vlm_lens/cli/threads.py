"""How many threads a model is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_lens.model import HookedVLM

SMALL = 20_000_000
"""A model of fewer parameters runs on one thread: with more, they mostly wait for each other."""


def fit_threads(model: HookedVLM) -> None:
    """Leaves a small model on the CPU one thread of this process."""
    import torch

    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    if str(model.cfg.device) == "cpu" and n_parameters < SMALL:
        torch.set_num_threads(1)

"""The control of what is said of neurons: the bundled architecture, with weights nobody trained."""

from __future__ import annotations

import torch

from vlm_lens import HookedVLM
from vlm_lens.shapes_llava.build import build_model, build_processor


def random_model(seed: int) -> HookedVLM:
    """The bundled model as it was before the first step of a training.

    Example:
        >>> random_model(0).cfg.n_layers
        6
    """
    torch.manual_seed(seed)
    return HookedVLM(build_model().eval(), processor=build_processor())

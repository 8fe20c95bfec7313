"""One forward over a batch, with or without a backward; of the logits, as few as are read."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vlm_lens.hooked_root import HookNeverFiredWarning
from vlm_lens.model import HookedVLM
from vlm_lens.passes.batch import Batch

_LOSS_SCALE = {torch.float16: 1024.0}
"""What losses are multiplied with before backward, so that float16 can hold their gradients."""


@contextmanager
def hooked(model: HookedVLM, hooks: Sequence[Any]) -> Iterator[None]:
    """Hooks for the length of a block; a batch without images is no reason for a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HookNeverFiredWarning)
        with model.hooks(list(hooks)):
            yield


@torch.no_grad()
def forward(model: HookedVLM, batch: Batch) -> None:
    """Runs the model on a batch; of the logits, which nobody reads, as few as it can."""
    options: dict[str, Any] = {} if model.text is None else {"use_cache": False}
    model(batch.arguments, return_type=None, **options, **few_logits(model))


def few_logits(model: HookedVLM) -> dict[str, int]:
    """Nobody reads the logits: where the model can do without most of them, it does."""
    few = "logits_to_keep" in inspect.signature(model.hf_model.forward).parameters
    return {"logits_to_keep": 1} if few else {}


def backward(model: HookedVLM, batch: Batch) -> None:
    """A forward and a backward of the losses of all samples, each scaled by `loss_scale`.

    The losses are added up, so that a gradient is that of its own sample's loss, whatever else is
    in the batch. The model's parameters get no gradients.
    """
    with torch.enable_grad(), frozen(model.hf_model):
        (losses(model, batch).sum() * loss_scale(model)).backward()


def loss_scale(model: HookedVLM) -> float:
    """What gradients have to be divided by."""
    return _LOSS_SCALE.get(model.cfg.dtype, 1.0)


def losses(model: HookedVLM, batch: Batch) -> Float[Tensor, " sample"]:
    """Each sample's mean cross entropy over what is scored."""
    columns = batch.scored.any(0).nonzero()[:, 0]
    if "logits_to_keep" in inspect.signature(model.hf_model.forward).parameters:
        logits = model(batch.arguments, use_cache=False, logits_to_keep=columns)
    else:
        logits = model(batch.arguments, use_cache=False)[:, columns]
    scored = batch.scored[:, columns].to(logits.device)
    targets = batch.targets[:, columns].to(logits.device)
    wide = torch.promote_types(logits.dtype, torch.float32)
    each = F.cross_entropy(logits[scored].to(wide), targets[scored], reduction="none")
    sums = each.new_zeros(len(batch)).index_add(0, scored.nonzero()[:, 0], each)
    return sums / scored.sum(1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Freezes a module's parameters for the length of a ``with`` block.

    Example:
        >>> linear = nn.Linear(2, 2)
        >>> with frozen(linear):
        ...     linear.weight.requires_grad
        False
        >>> linear.weight.requires_grad
        True
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)

"""Proof that the hook points of a model are what they are called, on the model at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformer_lens.hook_points import HookPoint

if TYPE_CHECKING:
    from vlm_lens.model import HookedVLM

ROW_SUM_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""How far a row of a pattern may be from one; 0.02 in half precision."""


class VerificationError(AssertionError):
    """A hook point does not do what its name says."""


@dataclass(frozen=True)
class Verification:
    """What `HookedVLM.verify` found.

    Attributes:
        n_points: Number of hook points.
        unread: Hook points whose values nothing reads, with the reason.
        absent: Hook points whose tensor does not come by on such an input, with the reason.
        largest_row_error: How far any row of an attention pattern is from a sum of one.
    """

    n_points: int
    unread: dict[str, str]
    absent: dict[str, str]
    largest_row_error: float

    def __str__(self) -> str:
        lines = [
            f"{self.n_points} hook points; logits equal Hugging Face's, bit for bit, with a hook "
            "on each.",
            f"Rows of attention patterns sum to one within {self.largest_row_error:.1e}.",
        ]
        for title, names in (("Read by nothing", self.unread), ("Not on this input", self.absent)):
            for reason in dict.fromkeys(names.values()):
                of_reason = [name for name, why in names.items() if why == reason]
                shown = ", ".join(of_reason[:3]) + (", ..." if len(of_reason) > 3 else "")
                lines.append(f"{title}: {len(of_reason)} points, {reason} ({shown}).")
        return "\n".join(lines)


def verify(model: HookedVLM, inputs: Mapping[str, Tensor]) -> Verification:
    """Runs a model three times and checks every hook point.

    Hook points must fire; the logits must equal Hugging Face's with a reading hook on each; rows of
    patterns must sum to one; and the gradient of the logits must reach each hook point, which is to
    say that writing there changes the output.

    Args:
        model: The model.
        inputs: What it is run on, with an image.

    Raises:
        VerificationError: Something is not as it should be; the message lists what.
    """
    fired: dict[str, int] = {}
    row_error = 0.0

    def read(tensor: Tensor, hook: HookPoint) -> None:
        nonlocal row_error
        fired[str(hook.name)] = fired.get(str(hook.name), 0) + 1
        if str(hook.name).endswith("hook_pattern"):
            row_error = max(row_error, _row_error(tensor))

    with torch.no_grad():
        expected = model.hf_model(**inputs).logits
        read_only = model.run_with_hooks(inputs, fwd_hooks=[(list(model.hook_dict), read)])
    silent = [name for name in model.hook_dict if name not in fired]
    unread = _without_gradient(model, inputs, list(fired))
    reasons = {name: _reason(model, name) for name in [*unread, *silent]}
    problems = [f"{name}: never fired" for name in silent if reasons[name] is None]
    problems += [f"{name}: writing changes nothing" for name in unread if reasons[name] is None]
    if not torch.equal(expected, read_only):
        problems.append("reading all hook points changed the logits")
    if row_error > ROW_SUM_TOLERANCE.get(expected.dtype, 0.02):
        problems.append(f"rows of attention patterns miss a sum of one by up to {row_error:.2g}")
    if problems:
        raise VerificationError(
            f"{len(problems)} of {len(model.hook_dict)} hook points of {model.cfg.architecture} "
            "are not what they are called:\n" + "\n".join(problems[:20])
        )
    return Verification(
        n_points=len(model.hook_dict),
        unread={name: str(reasons[name]) for name in unread},
        absent={name: str(reasons[name]) for name in silent},
        largest_row_error=row_error,
    )


def _row_error(pattern: Tensor) -> float:
    """How far the rows are from one; rows that stand for padding are zero and do not count."""
    sums = pattern.detach().float().sum(-1)
    sums = sums[sums != 0]
    return float((sums - 1).abs().max()) if sums.numel() else 0.0


def _without_gradient(
    model: HookedVLM, inputs: Mapping[str, Tensor], names: list[str]
) -> list[str]:
    """The hook points that no gradient of the logits reaches.

    A zero is added at every point, which changes nothing but takes part in the gradient.
    """
    zeros: dict[str, Tensor] = {}

    def add_zero(tensor: Tensor, hook: HookPoint) -> Tensor:
        zero = torch.zeros_like(tensor).detach().requires_grad_()
        zeros[str(hook.name)] = zero
        return tensor + zero

    with torch.enable_grad():
        logits = model.run_with_hooks(inputs, fwd_hooks=[(names, add_zero)])
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
        score = (logits.float() * weights.to(logits.device)).sum()
        gradients = torch.autograd.grad(score, list(zeros.values()), allow_unused=True)
    return [
        name
        for name, gradient in zip(zeros, gradients, strict=True)
        if gradient is None or not gradient.abs().max() > 0
    ]


def _reason(model: HookedVLM, name: str) -> str | None:
    """Why a hook point may be read by nothing; None where there is no good reason."""
    parts = name.split(".")
    if parts[:2] == ["vision_encoder", "blocks"]:
        last = model.vision_encoder.output_layer
        if last is not None and int(parts[2]) >= last:
            return f"the projector reads the encoder after block {last - 1}"
    if "text_mlp" in parts and int(parts[2]) == len(model.qformer.blocks) - 1:
        return "of the Q-Former's last block only the queries go on"
    return None


def noise_image() -> Image.Image:
    """A picture on which nothing is to be seen, and no two patches are alike."""
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return Image.fromarray(noise)

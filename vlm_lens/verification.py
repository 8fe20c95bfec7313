"""Proof that the hook points of a model are what they are called, on the model at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from vlm_lens.architectures.components import Component
from vlm_lens.architectures.components.component import Projection
from vlm_lens.hooks.adapters import beneath
from vlm_lens.hooks.bound import Bound
from vlm_lens.hooks.uncompiled import uncompiled
from vlm_lens.parts import given_by
from vlm_lens.running import Running

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""How far sums of a dtype may be from what they should be, as a share of it; 0.02 in half."""


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
        n_weights: Number of linear layers whose weights (`W_in` ...) were held against the run.
        unreadable: Weights that cannot be read (quantised, offloaded), with the reason.
    """

    n_points: int
    unread: dict[str, str]
    absent: dict[str, str]
    largest_row_error: float
    n_weights: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.n_points} hook points; logits equal Hugging Face's, bit for bit, with a hook "
            "on each.",
            f"Rows of attention patterns sum to one within {self.largest_row_error:.1e}.",
            f"The weights of {self.n_weights} linear layers are those that the model ran with.",
        ]
        exceptions = (
            ("Read by nothing", "points", self.unread),
            ("Not on this input", "points", self.absent),
            ("Not readable", "weights", self.unreadable),
        )
        for title, what, names in exceptions:
            for reason in dict.fromkeys(names.values()):
                of_reason = [name for name, why in names.items() if why == reason]
                shown = ", ".join(of_reason[:3]) + (", ..." if len(of_reason) > 3 else "")
                lines.append(f"{title}: {len(of_reason)} {what}, {reason} ({shown}).")
        return "\n".join(lines)


def verify(model: Running, inputs: Mapping[str, Tensor]) -> Verification:
    """Runs a model three times and checks every hook point and every weight.

    Hook points must fire; the logits must equal Hugging Face's with a reading hook on each; rows of
    patterns must sum to one; the gradient of the logits must reach each hook point, which is to say
    that writing there changes the output; linear layers must have computed with the weights that
    the model shows of them; and the configuration must say what the model is now. The model is
    verified as it is used: in evaluation mode, and uncompiled, as it runs where hooks are set.

    Args:
        model: The model.
        inputs: What it is run on, with an image.

    Raises:
        VerificationError: Something is not as it should be; the message lists what.
    """
    with _as_used(model):
        return _verify(model, inputs)


@contextmanager
def _as_used(model: Running) -> Iterator[None]:
    """In evaluation mode, and uncompiled."""
    training = model.training
    handle = uncompiled.use()
    try:
        model.eval()
        yield
    finally:
        model.train(training)
        handle.remove()


def _verify(model: Running, inputs: Mapping[str, Tensor]) -> Verification:
    fired: dict[str, int] = {}
    stream: list[Tensor] = []
    row_error = 0.0
    entry = "vision_encoder.hook_embed" if model.text is None else f"{model.text.prefix}hook_embed"

    def read(tensor: Tensor, hook: HookPoint) -> None:
        nonlocal row_error
        fired[str(hook.name)] = fired.get(str(hook.name), 0) + 1
        if hook.name == entry:
            stream.append(tensor)
        if str(hook.name).endswith("hook_pattern"):
            row_error = max(row_error, _row_error(tensor))

    with torch.no_grad():
        with _watched(model) as weights:
            expected = given_by(model.hf_model(**inputs))
        read_only = model.run_with_hooks(inputs, fwd_hooks=[(list(model.hook_dict), read)])
    silent = [name for name in model.hook_dict if name not in fired]
    unread = _without_gradient(model, inputs, list(fired))
    reasons = {name: _reason(model, name) for name in [*unread, *silent]}
    problems = [f"{name}: never fired" for name in silent if reasons[name] is None]
    problems += [f"{name}: writing changes nothing" for name in unread if reasons[name] is None]
    if not torch.equal(expected, read_only):
        problems.append("reading all hook points changed the logits")
    if row_error > TOLERANCE.get(expected.dtype, 0.02):
        problems.append(f"rows of attention patterns miss a sum of one by up to {row_error:.2g}")
    problems += weights.problems(TOLERANCE.get(expected.dtype, 0.02))
    problems += _untrue(model, stream[0], expected)
    if problems:
        raise VerificationError(
            f"{len(problems)} hook points, weights or sizes of {model.cfg.architecture}, which has "
            f"{len(model.hook_dict)} hook points, are not what they are called:\n"
            + "\n".join(problems[:20])
        )
    return Verification(
        n_points=len(model.hook_dict),
        unread={name: str(reasons[name]) for name in unread},
        absent={name: str(reasons[name]) for name in silent},
        largest_row_error=row_error,
        n_weights=len(weights.errors),
        unreadable=weights.unreadable,
    )


class _Weights:
    """What linear layers computed, against what their weights say."""

    def __init__(self) -> None:
        self.errors: dict[str, float] = {}
        self.unreadable: dict[str, str] = {}

    @torch.no_grad()
    def hold(self, name: str, projection: Projection, x: Tensor, output: Tensor) -> None:
        """Compute the first rows once more, with the weights that the component shows."""
        x = x.flatten(0, -2)[:_ROWS]
        found = projection.of(output.flatten(0, -2)[:_ROWS]).float()
        try:
            said = (x.to(projection.weight.dtype) @ projection.weight + projection.bias).float()
        except TypeError as error:
            self.unreadable[name] = str(error).split(":")[0]
            return
        scale = found.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        self.errors[name] = float((said - found).abs().max() / scale)

    def problems(self, tolerance: float) -> list[str]:
        """One line for each weight that is not what the model ran with."""
        return [
            f"{name}: the model did not compute with it (off by {error:.2g} of the largest output)"
            for name, error in self.errors.items()
            if not error <= tolerance
        ]


_ROWS = 8


@contextmanager
def _watched(model: Running) -> Iterator[_Weights]:
    """Hold every linear layer that runs in this block against the weights shown of it."""
    weights = _Weights()
    projections = {
        f"{name}.{weight}".lstrip("."): projection
        for name, component in model.named_modules()
        if isinstance(component, Component)
        for weight, projection in component.projections.items()
    }
    with ExitStack() as stack:
        for name, projection in projections.items():
            hold = Bound(_hold, weights, name, projection)
            stack.enter_context(projection.module.register_forward_hook(hold))
        yield weights


def _hold(
    weights: _Weights,
    name: str,
    projection: Projection,
    _module: Any,
    args: tuple,
    output: Tensor,
) -> None:
    weights.hold(name, projection, args[0], output)


def _untrue(model: Running, stream: Tensor, logits: Tensor) -> list[str]:
    """What the configuration says otherwise than the residual stream and the logits are."""
    cfg = model.cfg
    pairs: dict[str, tuple[Any, Any]] = {
        "cfg.dtype": (cfg.dtype, stream.dtype),
        "cfg.device": (str(cfg.device), str(stream.device)),
        "cfg.d_model": (cfg.d_model, stream.shape[-1]),
    }
    if model.text is not None:
        words = beneath(model.unembed.hf_module).out_features
        pairs["the number of words of W_U"] = (words, logits.shape[-1])
    return [
        f"{what} is {said}, not {found}" for what, (said, found) in pairs.items() if said != found
    ]


def _row_error(pattern: Tensor) -> float:
    """How far the rows are from one; rows that stand for padding are zero and do not count."""
    sums = pattern.detach().float().sum(-1)
    sums = sums[sums != 0]
    return float((sums - 1).abs().max()) if sums.numel() else 0.0


def _without_gradient(model: Running, inputs: Mapping[str, Tensor], names: list[str]) -> list[str]:
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


def _reason(model: Any, name: str) -> str | None:
    """Why a hook point may be read by nothing; None where there is no good reason."""
    parts = name.split(".")
    if parts[:2] == ["vision_encoder", "blocks"]:
        last = model.vision_encoder.output_layer
        if last is not None and int(parts[2]) >= last:
            return f"the projector reads the encoder after block {last - 1}"
    if "text_mlp" in parts and int(parts[2]) == len(model.qformer.blocks) - 1:
        return "of the Q-Former's last block only the queries go on"
    return None


def example_inputs(model: Running) -> Mapping[str, Tensor]:
    """A short question with whatever the model reads besides text, made of noise.

    Args:
        model: The model, with its processor.
    """
    if model.text is None:
        return model.prepare(images=noise_image())
    asked: dict[str, Any] = {"text": "what color is the circle ?"}
    if model.text.has_encoder:
        asked["answer"] = "red"  # a start token alone attends to nothing but itself
    if model.architecture.vision_encoder is not None:
        return model.prepare(images=noise_image(), **asked)
    if model.architecture.audio_encoder is not None:
        return model.prepare(audio=_noise((16_000,)).astype(np.float32), **asked)
    return model.prepare(**asked)


def noise_image() -> Image.Image:
    """A picture on which nothing is to be seen, and no two patches are alike."""
    return Image.fromarray((_noise((48, 64, 3)) * 256).astype(np.uint8))


def _noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random(shape)
